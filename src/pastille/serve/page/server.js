// The only place that talks to the server: addresses, the token, and refusals in plain words.

const KEY = "pastille-token";
const PATIENCE_MS = 20_000;

/** What went wrong, in words for people. `status` is 0 where there was no answer at all. */
export class Problem extends Error {
  constructor(status, said, waitSeconds) {
    super(said);
    this.status = status;
    this.waitSeconds = waitSeconds;
  }
}

/** Keep a token for as long as this tab is open; an empty one forgets it. */
export function keepToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

export const hasToken = () => sessionStorage.getItem(KEY) !== null;

/**
 * Ask, and give back the JSON of the answer.
 * @throws {Problem} for anything but a 2xx answer of JSON.
 */
export async function ask(address, { method = "GET", body, type, signal } = {}) {
  const headers = new Headers({ Accept: "application/json" });
  const token = sessionStorage.getItem(KEY);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  if (type) headers.set("Content-Type", type);
  const limit = AbortSignal.timeout(PATIENCE_MS);
  const signals = signal ? AbortSignal.any([signal, limit]) : limit;
  let answer;
  try {
    answer = await fetch(address, { method, body, headers, signal: signals, cache: "no-store" });
  } catch (problem) {
    if (signal?.aborted) throw problem;
    throw new Problem(
      0,
      problem.name === "TimeoutError" ? "it took longer than 20 s" : "it cannot be reached",
    );
  }
  return read(answer);
}

async function read(answer) {
  const json = await answer.json().catch(() => null);
  if (answer.ok && json !== null) return json;
  const said = typeof json?.error === "string" ? json.error : `the server answered ${answer.status}`;
  throw new Problem(answer.status, said, Number(answer.headers.get("Retry-After")) || null);
}
