// The switch between local time and UTC, which is kept by the browser or, without storage, by the page's address.

import { byId, setAttribute, setText } from "../lib/dom.js";
import { IS_UTC, ZONE } from "../lib/format.js";
import { write } from "../lib/stored.js";

/** Show which zone times are in, and let the reader change it; call it once, when the page is made. */
export function showZone() {
  setAttribute(byId("zone"), "aria-pressed", IS_UTC);
  setText(byId("zone-text"), IS_UTC ? "in UTC" : "local");
  byId("zone").addEventListener("click", () => {
    const isKept = write(ZONE, IS_UTC ? null : "UTC");
    const address = new URL(location.href);
    if (isKept || IS_UTC) address.searchParams.delete(ZONE);
    else address.searchParams.set(ZONE, "UTC");
    // All times of the page change together; its address has what else was chosen.
    if (address.href === location.href) location.reload();
    else location.replace(address);
  });
}
