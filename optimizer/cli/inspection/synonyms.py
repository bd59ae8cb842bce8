"""The names that other engines use for the fields of this package: one table for each kind of unit.

Names are compared without case, underscores, hyphens and spaces, so `lastPrice` and `Last Price` are `lastprice`. The
first name of a row that an input has, with values that fit the field, is suggested. A new synonym is one word here.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "BOT_NAMES",
    "EXTRA_NAMES",
    "POSITION_NAMES",
    "RECORD_NAMES",
    "SECTION_NAMES",
    "SYMBOL_NAMES",
    "normalized",
]

_IGNORED: Final = re.compile(r"[-_ ]")

SYMBOL_NAMES: Final = ("symbol", "ticker", "instrument", "asset", "security", "sym", "ric", "figi", "isin")
_TIME_NAMES: Final = (
    "timestamp", "time", "ts", "updatedat", "lastupdated", "lastupdate", "updated", "asof", "generatedat", "createdat",
    "datetime", "date",
)  # fmt: skip

RECORD_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "symbol": SYMBOL_NAMES,
    "prediction": (
        "prediction", "pred", "predicted", "predictedprice", "predictedvalue", "predictionvalue", "forecast",
        "forecastprice", "yhat", "expectedprice", "expectedreturn", "predictedreturn",
    ),
    "confidence": (
        "confidence", "conf", "confidencescore", "confidencepct", "confidencepercent", "score", "probability", "prob",
        "certainty",
    ),
    "last_price": (
        "lastprice", "last", "price", "close", "lastclose", "closeprice", "closingprice", "currentprice", "spot",
        "markprice", "px", "pxlast",
    ),
    "sentiment": ("sentiment", "signal", "direction", "outlook", "bias", "recommendation", "rating", "stance"),
    "target_price": ("targetprice", "target", "pricetarget", "takeprofit", "tp"),
    "stop_loss": ("stoploss", "stop", "stopprice", "sl"),
    "timestamp": _TIME_NAMES,
}  # fmt: skip
BOT_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "enabled": ("enabled", "active", "isactive", "isenabled", "running", "isrunning", "on", "live"),
    "equity": ("equity", "balance", "nav", "accountvalue", "portfoliovalue", "totalvalue", "totalequity", "networth"),
    "pnl_today": ("pnltoday", "todaypnl", "dailypnl", "daypnl", "pnlday", "pnldaily", "pnl1d", "pnl", "profittoday"),
    "positions": ("positions", "holdings", "openpositions", "portfolio"),
    "last_updated": ("lastupdated", *(name for name in _TIME_NAMES if name != "lastupdated")),
}
POSITION_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "symbol": SYMBOL_NAMES,
    "quantity": ("quantity", "qty", "size", "shares", "units", "amount", "positionsize", "netqty", "volume"),
    "avg_price": (
        "avgprice", "avg", "entryprice", "averageprice", "avgcost", "averagecost", "costbasis", "avgentryprice",
        "entry", "openprice",
    ),
}  # fmt: skip

# Further fields that pages about predictions often show. Other fields are listed, but not suggested.
EXTRA_NAMES: Final = (
    "name", "companyname", "company", "sector", "industry", "exchange", "currency", "country", "volume", "marketcap",
    "horizon", "model", "modelversion",
)  # fmt: skip

# The members of a root in which engines put their records.
SECTION_NAMES: Final = (
    "data", "records", "results", "result", "items", "rows", "values", "symbols", "predictions", "prediction",
    "tickers", "instruments", "assets", "stocks", "signals", "forecasts", "quotes", "universe", "brain", "payload",
)  # fmt: skip


def normalized(name: str) -> str:
    """Return a name as it is compared."""
    return _IGNORED.sub("", name).lower()
