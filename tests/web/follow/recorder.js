// Follows a source and records what a page would be told: each version as text, and rows that only changes have touched.

export function record(follow, base, options = {}) {
  const rows = { predictions: new Map(), bots: new Map(), holdings: new Map() };
  const log = { versions: [], states: [], statuses: [], problems: [], waits: globalThis.waits ?? [] };
  const pairs = (kind, values) => (kind === "bots" ? values : values.map((value) => [value.symbol, value]));
  const textOf = (values) => JSON.stringify([...values]);
  let calls = 0;

  function onVersion(content, changes) {
    const touched = [];
    for (const kind of Object.keys(rows)) {
      for (const name of changes[kind].removed) touched.push(rows[kind].delete(name) ? name : `no ${name}`);
      for (const [name, value] of pairs(kind, changes[kind].changed)) {
        if (JSON.stringify(rows[kind].get(name)) === JSON.stringify(value)) touched.push(`same ${name}`);
        else touched.push(name);
        rows[kind].set(name, value);
      }
      // What was not named is the same object as before, and all that is held was named once.
      const held = new Map(pairs(kind, content[kind]));
      const isSame = held.size === rows[kind].size && [...held].every(([name, value]) => rows[kind].get(name) === value);
      if (!isSame) touched.push(`wrong ${kind}`);
    }
    const { version, timestamp, predictions, bots, holdings } = content;
    const texts = { predictions: textOf(predictions), bots: textOf(bots), holdings: textOf(holdings) };
    log.versions.push({ version, timestamp, touched, ...texts });
    calls += 1;
    if (calls === options.failsAt) throw new Error("a mistake of the page");
  }

  const { failsAt, ...rest } = options;
  const following = follow(base, {
    onVersion,
    onState: (state) => log.states.push(state),
    onStatus: ({ cache_up: up }) => log.statuses.push(up),
    onError: ({ name, status, message, body }) => log.problems.push({ name, status, message, body }),
    ...rest,
  });
  return { following, log };
}

/** Let waits pass faster, so that retries do not take a test minutes; what was to be waited is in `waits`, in ms. */
export function hasten(factor) {
  const real = globalThis.setTimeout;
  globalThis.waits = [];
  globalThis.setTimeout = (call, ms, ...values) => {
    globalThis.waits.push(ms);
    return real(call, ms / factor, ...values);
  };
}
