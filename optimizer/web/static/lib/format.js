// Values formatted for people, in the browser's language. A missing value, or one that is no number, is a dash.

import { read } from "./stored.js";

export const MISSING = "–";

/** The name under which the browser stores whether times are in UTC; without storage, the page's address has it. */
export const ZONE = "zone";
/** Whether all times are shown in UTC, and not in the reader's own zone. */
export const IS_UTC = [read(ZONE), new URLSearchParams(location.search).get(ZONE)].includes("UTC");

// Numbers from here on are shown by their power of ten, since their digits would displace other columns.
const LONG = 1e9;
const LONG_MONEY = 1e12;

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const two = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const small = new Intl.NumberFormat(undefined, { minimumSignificantDigits: 2, maximumSignificantDigits: 4 });
const signed = new Intl.NumberFormat(undefined, {
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
  signDisplay: "exceptZero",
});
const upTo = new Intl.NumberFormat(undefined, { maximumFractionDigits: 8 });
const share = new Intl.NumberFormat(undefined, {
  style: "percent",
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
});
const change = new Intl.NumberFormat(undefined, {
  style: "percent",
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
  signDisplay: "exceptZero",
});
const power = new Intl.NumberFormat(undefined, { notation: "scientific", maximumFractionDigits: 2 });
const powerShare = new Intl.NumberFormat(undefined, {
  style: "percent",
  notation: "scientific",
  maximumFractionDigits: 2,
  signDisplay: "exceptZero",
});
const timeZone = IS_UTC ? "UTC" : undefined;
const day = new Intl.DateTimeFormat(undefined, { timeZone });
const clock = new Intl.DateTimeFormat(undefined, {
  timeZone,
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const dayAndClock = new Intl.DateTimeFormat(undefined, {
  timeZone,
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  hourCycle: "h23",
});
const zoned = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
  timeZoneName: "short",
});
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long", timeZone });

/** Whether a number is shown with all digits before its point. */
export const isShort = (value) => !Number.isFinite(value) || Math.abs(value) < LONG;
/** A number with all its digits. */
export const exact = (value) => upTo.format(value);

const numberOr =
  (format, limit = Infinity, long = power) =>
  (value) =>
    Number.isFinite(value) ? (Math.abs(value) < limit ? format(value) : long.format(value)) : MISSING;

/** A count: 8,000. */
export const count = numberOr((value) => whole.format(value));
/** A price: two places, or four digits if it is below 1. */
export const price = numberOr((value) => (Math.abs(value) >= 1 || value === 0 ? two : small).format(value), LONG);
/** An amount of money: 1,234.50. */
export const money = numberOr((value) => two.format(value), LONG_MONEY);
/** A gain or loss with its sign: +1,234.50. */
export const gain = numberOr((value) => signed.format(value), LONG_MONEY);
/** A quantity: 0.00012, 1,500. */
export const quantity = numberOr((value) => upTo.format(value), LONG);
/** A share of 1: 0.9988 is 99.88%. */
export const percent = numberOr((value) => share.format(value));
/** A relative change with its sign: 0.021 is +2.10%. */
export const percentChange = numberOr((value) => change.format(value), LONG / 1e3, powerShare);
/** A measured value with a unit: three digits are enough. */
export const measured = numberOr((value) =>
  new Intl.NumberFormat(undefined, { maximumSignificantDigits: Math.abs(value) >= 100 ? 4 : 3 }).format(value),
);

/** A length of time in seconds as one or two units: 12 s, 4 min 10 s, 3 h 2 min, 2 d 5 h. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return MISSING;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** How long a run took, in seconds: 0.042 s, 13.4 s, 2 min 3 s. */
export function runTime(seconds) {
  if (!Number.isFinite(seconds)) return MISSING;
  return seconds < 60 ? `${measured(seconds)} s` : duration(seconds);
}

/**
 * The instant that a timestamp of the data names, or null. The engine may write ISO text, seconds or milliseconds since
 * the epoch, or anything else.
 */
export function instant(timestamp) {
  if (timestamp === null || timestamp === undefined || timestamp === "") return null;
  const date =
    typeof timestamp === "number" ? new Date(timestamp > 1e11 ? timestamp : timestamp * 1000) : new Date(timestamp);
  return Number.isNaN(date.getTime()) ? null : date;
}

/** A timestamp as a short time, with the day if that is not today; other text is shown as it is. */
export function time(timestamp) {
  const date = instant(timestamp);
  if (date === null) return timestamp === null || timestamp === undefined ? MISSING : String(timestamp);
  return day.format(date) === day.format(new Date()) ? clock.format(date) : dayAndClock.format(date);
}

const UTC_TIME = /\b(\d{4}-\d\d-\d\d )?(\d\d:\d\d:\d\d) UTC\b/g;

/** A text of the server, which has all times in UTC and omits today's date, with its times in the page's zone. */
export function inZone(text) {
  if (IS_UTC) return text;
  const today = new Date();
  return text.replace(UTC_TIME, (told, date, clockTime) => {
    const at = instant(`${date?.trim() ?? today.toISOString().slice(0, 10)}T${clockTime}Z`);
    if (at === null) return told;
    return day.format(at) === day.format(today) ? zoned.format(at) : `${day.format(at)}, ${zoned.format(at)}`;
  });
}

/** The same in full, for a tooltip. */
export function fullTime(timestamp) {
  const date = instant(timestamp);
  return date === null ? "" : full.format(date);
}
