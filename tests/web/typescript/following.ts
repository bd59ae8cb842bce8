// A page that follows a source with follow.js, whose types are in follow.d.ts.

import { follow, fetchJson, Problem } from "./follow.js";
import type { BotSummary, Changes, Content, Following, Holding, Options, Record, State } from "./follow.js";
import type { components } from "./schema";

// Both are types of the same JSON.
type Schemas = components["schemas"];
export const records = (record: Omit<Required<Schemas["Record"]>, "extra">): Record => record;
export const extras = (record: Schemas["Record"]): Required<Record>["extra"] => record.extra ?? {};
export const bots = (bot: Schemas["BotSummary"]): BotSummary => bot;
export const holdings = (holding: Schemas["Holding"]): Holding => holding;
export const recordsBack = (record: Required<Omit<Record, "extra">>): Schemas["Record"] => record;
export const botsBack = (bot: BotSummary): Schemas["BotSummary"] => bot;
export const holdingsBack = (holding: Holding): Schemas["Holding"] => holding;

const rows = new Map<string, HTMLTableRowElement>();

export function show({ version, timestamp, predictions }: Content, changes: Changes): void {
  for (const { symbol, confidence, target_price } of changes.predictions.changed) {
    const row = rows.get(symbol) ?? document.createElement("tr");
    row.textContent = `${symbol} ${confidence.toFixed(2)} ${target_price?.toFixed(2) ?? "none"}`;
    rows.set(symbol, row);
  }
  for (const symbol of changes.predictions.removed) rows.delete(symbol);
  for (const [name, bot] of changes.bots.changed) console.log(name, bot.equity ?? 0);
  document.title = `${predictions.length} of ${version}, ${timestamp.slice(0, 10)}`;
}

const ending = new AbortController();
const options: Options = {
  onVersion: show,
  onState: (state: State) => console.log(state === "live" ? "live" : state),
  onStatus: ({ cache_up: isUp }) => console.log(isUp),
  onError: (problem: Problem) => console.warn(problem.status, problem.message, problem.body["detail"]),
  signal: ending.signal,
  credentials: "include",
  pollMs: 2_000,
};
export const following: Following = follow("https://api.example/rolling", options);
export const others: Following[] = [follow(), follow("/api"), follow(new URL("https://api.example/"), {})];
export const equity = [...(following.content?.bots.values() ?? [])].reduce((sum, bot) => sum + (bot.equity ?? 0), 0);

export async function status(): Promise<unknown> {
  try {
    return await fetchJson("/api/status", { limitMs: 1_000, headers: { "X-Of": "the page" } });
  } catch (error) {
    return error instanceof Problem ? error.status : null;
  }
}

document.addEventListener("visibilitychange", () => (document.hidden ? following.close() : following.open()));

// What does not fit is refused; the compiler fails if one of these lines is right.
export function mistakes(content: Content, record: Record): void {
  // @ts-expect-error what is followed is not changed
  content.predictions.push(record);
  // @ts-expect-error a field is not changed either
  record.confidence = 1;
  // @ts-expect-error there may be nothing yet
  following.content.version;
  // @ts-expect-error bots are a map, for any name can be one
  content.bots["alpha"];
  // @ts-expect-error there is no such option
  follow("", { onversion: show });
}
