// The workers and beats of the source by their last heartbeats: those that live, and since when the others are missing.

import { addColumnCue } from "../components/cue.js";
import { byId, element, setText } from "../lib/dom.js";
import * as format from "../lib/format.js";

const HEADS = ["Process", "Name", "State", "Told last", "Queues"];

/** Show the processes of /status; none while Redis is away, since those shown before would be outdated. */
export function showProcesses({ processes, cache_up: isUp }) {
  const table = byId("processes");
  const shown = JSON.stringify([processes, isUp]);
  if (table.dataset.shown === shown) return;
  if (!table.tHead) addColumnCue(table);
  table.dataset.shown = shown;
  const missing = processes.filter(({ is_alive: isAlive }) => !isAlive).length;
  const number = `${format.count(processes.length)}${missing ? `, ${format.count(missing)} missing` : ""}`;
  const known = processes.length ? number : "none has told that it lives";
  setText(byId("processes-count"), isUp ? known : "not known while Redis is away");
  table.parentElement.hidden = !processes.length;
  const head = element("tr", {}, ...HEADS.map((text) => element("th", { scope: "col" }, element("span", {}, text))));
  table.replaceChildren(table.caption, element("thead", {}, head), element("tbody", {}, ...processes.map(row)));
}

function row({ kind, name, seen_at: seenAt, is_alive: isAlive, queues }) {
  const state = element("span", { class: "badge", "data-kind": isAlive ? "on" : "failed" }, isAlive ? "alive" : "missing");
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, kind),
    element("td", {}, element("bdi", {}, name)),
    element("td", {}, state),
    element("td", { title: format.fullTime(seenAt) }, format.time(seenAt)),
    element("td", {}, element("bdi", {}, queues.join(", "))),
  );
}
