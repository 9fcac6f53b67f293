// The endpoint's answers. A fault is an Error whose message is a sentence for people.

export async function ask(path, { query = {}, body, signal } = {}) {
  const wanted = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const address = wanted.length ? `${path}?${new URLSearchParams(wanted)}` : path;
  const told = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(address, { signal, ...told });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Error("The endpoint does not answer. Is `nightjar serve` still running?");
  }
  const content = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(sentence(content, answer.status));
  return content;
}

function sentence(content, status) {
  const detail = content?.detail;
  if (Array.isArray(detail)) return detail.map((each) => each.msg).join("; "); // pydantic's form
  return typeof detail === "string" ? detail : `The endpoint answered with status ${status}.`;
}

const ofUser = (user, what) => `users/${encodeURIComponent(user)}/${what}`;

export const users = (text, signal) => ask("users", { query: { query: text, limit: 12 }, signal });
export const items = (text, signal) => ask("items", { query: { query: text, limit: 12 }, signal });
export const models = () => ask("models");
export const ready = () => ask("ready");
export const history = (user) => ask(ofUser(user, "history"));
export const lastNight = (user, signal) => ask(ofUser(user, "recommendations"), { signal });
export const intentsOf = (user, signal) => ask(ofUser(user, "intents"), { signal });
export const recommend = (body, signal) => ask("recommend", { body, signal });
