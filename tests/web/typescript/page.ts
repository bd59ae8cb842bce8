// A page of an app that includes the router under /api. Its types are made from the app's /openapi.json.

import type { components, operations, paths } from "./schema";

type Record = components["schemas"]["Record"];
type Bots = components["schemas"]["BotsSnapshot"]["bots"];
type Problem = components["schemas"]["Problem"];
type Query = NonNullable<operations["api_predictions"]["parameters"]["query"]>;
type Predictions =
  paths["/api/predictions"]["get"]["responses"][200]["content"]["application/json"];
type Missing =
  paths["/api/predictions/{symbol}"]["get"]["responses"][404]["content"]["application/problem+json"];

export async function predictions(query: Query): Promise<Predictions> {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) words.set(name, String(value));
  const response = await fetch(`/api/predictions?${words}`);
  if (!response.ok) {
    const problem: Problem = await response.json();
    throw new Error(`${problem.status} ${problem.title}: ${problem.detail}`);
  }
  return response.json();
}

export async function prediction(symbol: string): Promise<Record | null> {
  const response = await fetch(`/api/predictions/${encodeURIComponent(symbol)}`);
  if (response.status === 404) {
    const problem: Missing = await response.json();
    console.warn(problem.detail);
    return null;
  }
  return response.json();
}

export function change(record: Record): string {
  const percent = (record.prediction / record.last_price - 1) * 100;
  const target: number | null = record.target_price ?? null;
  return `${record.symbol} ${percent.toFixed(1)} % ${record.sentiment.toUpperCase()} ${target?.toFixed(2)}`;
}

export function equity(bots: Bots): number {
  return Object.values(bots).reduce((sum, bot) => sum + (bot.equity ?? 0), 0);
}

export async function best(): Promise<string[]> {
  const { predictions: records, count } = await predictions({ limit: 10, min_confidence: 0.8 });
  return records.slice(0, count).map(change);
}

// What does not fit is refused; the compiler fails if one of these lines is right.
export function mistakes(record: Record, bots: Bots): void {
  // @ts-expect-error there is no such field
  record.symbl;
  // @ts-expect-error a price is a number
  record.last_price.trim();
  // @ts-expect-error a bot's equity may be null
  bots["alpha"]!.equity.toFixed();
  // @ts-expect-error a limit is a number
  void predictions({ limit: "ten" });
}
