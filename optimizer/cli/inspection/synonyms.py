"""The names that other engines use for the fields of this package: one table for each kind of unit.

A field's own names, from the tables in `models`, come first; these are the names that engines use besides. Names are
compared without case, underscores, hyphens and spaces, so `lastPrice` and `Last Price` are `lastprice`. The first name
of a row that an input has, with values that fit the field, is suggested. A new synonym is one word here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from optimizer.models import Bot, Position, Record, names_of

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

_SYMBOL_NAMES: Final = ("ticker", "instrument", "asset", "security", "sym", "ric", "figi", "isin")
_TIME_NAMES: Final = (
    "timestamp", "time", "ts", "updatedat", "lastupdated", "lastupdate", "updated", "asof", "generatedat", "createdat",
    "datetime", "date",
)  # fmt: skip

_OF_RECORDS: Final[dict[str, tuple[str, ...]]] = {
    "symbol": _SYMBOL_NAMES,
    "prediction": (
        "pred", "predicted", "predictedprice", "predictedvalue", "predictionvalue", "forecast",
        "forecastprice", "yhat", "expectedprice", "expectedreturn", "predictedreturn",
    ),
    "confidence": (
        "conf", "confidencescore", "confidencepct", "confidencepercent", "score", "probability", "prob",
        "certainty",
    ),
    "last_price": (
        "close", "lastclose", "closeprice", "closingprice", "currentprice", "spot",
        "markprice", "px", "pxlast",
    ),
    "sentiment": ("signal", "direction", "outlook", "bias", "recommendation", "rating", "stance"),
    "target_price": ("target", "pricetarget", "takeprofit", "tp"),
    "stop_loss": ("stop", "stopprice", "sl"),
    "timestamp": _TIME_NAMES,
}  # fmt: skip
_OF_BOTS: Final[dict[str, tuple[str, ...]]] = {
    "enabled": ("active", "isactive", "isenabled", "running", "isrunning", "on", "live"),
    "equity": ("balance", "nav", "accountvalue", "portfoliovalue", "totalvalue", "totalequity", "networth"),
    "pnl_today": ("todaypnl", "dailypnl", "daypnl", "pnlday", "pnldaily", "pnl1d", "pnl", "profittoday"),
    "positions": ("holdings", "openpositions", "portfolio"),
    "last_updated": _TIME_NAMES,
}
_OF_POSITIONS: Final[dict[str, tuple[str, ...]]] = {
    "symbol": _SYMBOL_NAMES,
    "quantity": ("size", "shares", "units", "amount", "positionsize", "netqty", "volume"),
    "avg_price": (
        "averageprice", "avgcost", "averagecost", "costbasis", "avgentryprice",
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


def _names(own: Mapping[str, tuple[str, ...]], others: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the names of each field as they are compared: its own, then those of other engines."""
    return {
        field: tuple(dict.fromkeys((*map(normalized, names), *others.get(field, ())))) for field, names in own.items()
    }


RECORD_NAMES: Final = _names(names_of(Record), _OF_RECORDS)
# A bot's name is its key; its positions are no field of its table, but a list or a map.
BOT_NAMES: Final = {
    field: names
    for field, names in _names(names_of(Bot) | {"positions": ("positions",)}, _OF_BOTS).items()
    if field != "name"
}
POSITION_NAMES: Final = _names(names_of(Position), _OF_POSITIONS)
SYMBOL_NAMES: Final = RECORD_NAMES["symbol"]
