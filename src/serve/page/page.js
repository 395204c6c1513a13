// The page at `/`: searches while one types, and shows the state once a second. All that comes from the server is put in as
// text, never as markup.
"use strict";

const POLL_MS = 1000;
const POLL_SILENT_MS = 3000;
const DEBOUNCE_MS = 140;
const LIMIT = 5;
const LIMIT_MAX = 100;
const CHANGES_SHOWN = 10;
const KEY = "vecsync-key";

const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

// Makes an element: its class, its content (text or elements).
function make(name, kind, ...content) {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.append(...content);
  return element;
}

// Sets a text only where it differs, so that a live region is read once.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function shownId(id) {
  if (id === null || typeof id !== "object") return String(id);
  return Object.values(id).map(String).join(", ");
}

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${ms} ms`;
  const [size, unit] = ms < 60e3 ? [1e3, "s"] : ms < 3600e3 ? [60e3, "min"] : ms < 48 * 3600e3 ? [3600e3, "h"] : [86400e3, "days"];
  const value = ms / size;
  return `${value < 10 && unit === "s" ? value.toFixed(1) : Math.floor(value)} ${unit}`;
}

// How far behind: calm where it changes each second.
function age(ms) {
  return ms === null || ms === undefined || ms >= 60e3 ? duration(ms) : `${(ms / 1000).toFixed(1)} s`;
}

function ago(ms) {
  return ms < 1000 ? "just now" : `${duration(Math.floor(ms / 1000) * 1000).replace(".0", "")} ago`;
}

// The server.

class Refused extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail || problem.title || `HTTP status ${status}`);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const stored = {
  get key() {
    try { return sessionStorage.getItem(KEY); } catch { return this.held; }
  },
  set key(key) {
    this.held = key;
    try {
      if (key === null) sessionStorage.removeItem(KEY);
      else sessionStorage.setItem(KEY, key);
    } catch { /* without storage it lives as long as the page */ }
  },
  held: null,
};

async function ask(path, signal) {
  const key = stored.key;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok || path === "health/") return body;
  if (answer.status === 401) lock(Boolean(key));
  throw new Refused(answer.status, body, Number(answer.headers.get("Retry-After")) || 0);
}

// The key.

let locked = false;

function lock(wasWrong) {
  locked = true;
  stored.key = null;
  at("keys").hidden = false;
  at("search").hidden = true;
  at("state").hidden = true;
  say(at("keys-said"), wasWrong ? "That key is not known here (401)." : "");
  if (document.activeElement === document.body || document.activeElement === at("query")) at("key").focus();
}

at("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  stored.key = at("key").value.trim();
  at("key").value = "";
  locked = false;
  at("keys").hidden = true;
  at("search").hidden = false;
  at("query").focus();
  poll();
  search();
});

// The search.

// `pipeline` is the one that is chosen; null: the default one, which the server knows.
const wanted = { pipeline: null, query: "", filter: new Map(), limit: LIMIT };
let filters = [];
let titleField = null;
let asked = 0;
let giveUp = new AbortController();
let waiting = 0;
let shownResults = "[]";

function parameters() {
  const list = new URLSearchParams();
  if (wanted.query) list.set("q", wanted.query);
  for (const [field, value] of wanted.filter) list.append("filter", `${field}:${value}`);
  return list;
}

// The path of the pipeline that is chosen.
function under(path) {
  return wanted.pipeline === null ? path : `pipelines/${encodeURIComponent(wanted.pipeline)}/${path}`;
}

function readAddress() {
  const list = new URLSearchParams(location.search);
  wanted.query = (list.get("q") || "").trim();
  wanted.filter = new Map(list.getAll("filter").filter((one) => one.includes(":")).map((one) => {
    const colon = one.indexOf(":");
    return [one.slice(0, colon), one.slice(colon + 1)];
  }));
  wanted.limit = LIMIT;
  wanted.pipeline = list.get("pipeline") || null;
  at("query").value = wanted.query;
}

function writeAddress(push) {
  const list = parameters();
  if (wanted.pipeline !== null) list.set("pipeline", wanted.pipeline);
  const text = list.toString();
  const address = text ? `?${text}` : location.pathname;
  document.title = wanted.query ? `${wanted.query} – vecsync` : "vecsync";
  if (push && location.search !== (text ? `?${text}` : "")) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

// Asks for what is wanted now. An answer that comes after a later question was asked is dropped.
async function search(focusAt) {
  clearTimeout(waiting);
  giveUp.abort();
  const mine = ++asked;
  showFilters();
  if (locked) return;
  if (!wanted.query) {
    showResults({ results: [] });
    tell("");
    return;
  }
  giveUp = new AbortController();
  at("results").setAttribute("aria-busy", "true");
  const list = parameters();
  list.set("limit", wanted.limit);
  try {
    const answer = await ask(under(`search?${list}`), giveUp.signal);
    if (mine !== asked) return;
    showResults(answer, focusAt);
    tell(summary(answer));
  } catch (error) {
    if (mine !== asked || error.name === "AbortError") return;
    showResults({ results: [] });
    const again = error.retryAfter > 0;
    const reason = error instanceof Refused ? error.message : "no answer from the server";
    tell(`Not searched: ${reason}${again ? ". Trying again." : ""}`, true);
    if (again) waiting = setTimeout(search, error.retryAfter * 1000);
  } finally {
    if (mine === asked) at("results").removeAttribute("aria-busy");
  }
}

// Rows have changed: asks again, and shows what is another answer now. Nobody's reading is disturbed: not while a result
// is open or has the focus.
async function refresh() {
  const isRead = at("results").contains(document.activeElement) || at("results").querySelector("[aria-expanded=true]");
  if (!wanted.query || isRead || at("results").hasAttribute("aria-busy")) return;
  const mine = asked;
  const list = parameters();
  list.set("limit", wanted.limit);
  const answer = await ask(under(`search?${list}`)).catch(() => null);
  if (!answer || mine !== asked || JSON.stringify(answer.results) === shownResults) return;
  showResults(answer);
  tell(summary(answer));
}

function tell(text, isFault) {
  at("said").dataset.status = isFault ? "fault" : "";
  say(at("said"), text);
}

function summary(answer) {
  const found = answer.results.length;
  const many = found === 0 ? "Nothing found" : `${found} ${found === 1 ? "result" : "results"}`;
  const old = answer.staleness_ms === null ? "age unknown" : `at most ${age(answer.staleness_ms)} old`;
  const how = answer.degraded ? ", degraded" : "";
  return `${many} · ${answer.served_by}${how} · ${answer.took_ms} ms · ${old}`;
}

function showFilters() {
  const chips = [...wanted.filter].map(([field, value]) => {
    const chip = make("button", "chip", `${field}: ${value}`);
    chip.type = "button";
    chip.setAttribute("aria-label", `Remove the filter ${field}: ${value}`);
    chip.addEventListener("click", () => {
      wanted.filter.delete(field);
      changed(true);
      at("query").focus();
    });
    return make("li", "", chip);
  });
  at("filters").replaceChildren(...chips);
  at("filters").hidden = chips.length === 0;
}

function showResults(answer, focusAt) {
  const { results, served_by: store } = answer;
  const known = words(wanted.query);
  shownResults = JSON.stringify(results);
  at("results").replaceChildren(...results.map((result, place) => resultItem(result, store, known, place)));
  const canHaveMore = results.length === wanted.limit && wanted.limit < LIMIT_MAX;
  at("more").hidden = !canHaveMore;
  if (focusAt !== undefined) openers()[Math.min(focusAt, results.length - 1)]?.focus();
}

function resultItem(result, store, known, place) {
  const title = titleOf(result);
  const opener = make("button", "", ...marked(title, known));
  opener.type = "button";
  opener.setAttribute("aria-expanded", "false");
  opener.setAttribute("aria-describedby", `from-${place}`);
  const passage = make("p", "passage", ...marked(result.passage, known));
  const bar = make("i", "");
  bar.setAttribute("aria-hidden", "true");
  bar.style.setProperty("--share", `${Math.max(0, Math.min(1, result.score)) * 100}%`);
  const score = make("span", "score", bar, `score ${result.score.toFixed(2)}`);
  score.title = "Cosine similarity";
  const from = make("div", "from", score, make("span", "store", `from ${store}`), make("span", "", `id ${shownId(result.id)}`));
  from.id = `from-${place}`;
  for (const field of filters) {
    const value = result.payload[field];
    if (["string", "number", "boolean"].includes(typeof value) && value !== result.id) from.append(filterChip(field, value));
  }
  const item = make("li", "shut", make("h3", "", opener), passage, from, fieldList(result, title));
  opener.addEventListener("click", () => {
    const open = item.classList.toggle("shut") === false;
    opener.setAttribute("aria-expanded", String(open));
  });
  return item;
}

function titleOf(result) {
  const own = titleField && result.payload[titleField];
  const first = Object.entries(result.payload).find(([field, value]) => typeof value === "string" && value && !filters.includes(field));
  return (own || (first && first[1]) || `id ${shownId(result.id)}`).slice(0, 300);
}

function filterChip(field, value) {
  const chip = make("button", "chip", String(value));
  chip.type = "button";
  chip.setAttribute("aria-label", `Only ${field}: ${value}`);
  chip.addEventListener("click", () => {
    wanted.filter.set(field, String(value));
    changed(true);
    at("query").focus();
  });
  return chip;
}

function fieldList(result, title) {
  const list = make("dl", "fields");
  for (const [field, value] of Object.entries(result.payload)) {
    if (value === null || value === title || value === result.passage) continue;
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    list.append(make("dt", "", field), make("dd", "", text));
  }
  return list;
}

// Words worth marking: not those that every question has.
const COMMON = new Set(["and", "are", "can", "did", "does", "for", "from", "how", "not", "our", "should", "that", "the", "this",
  "was", "what", "when", "where", "which", "who", "why", "will", "with", "you", "your"]);

function words(query) {
  return (query.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []).filter((word) => word.length > 2 && !COMMON.has(word));
}

// The text with the words of the query, and their longer and shorter forms, in marks.
function marked(text, known) {
  const parts = [];
  let done = 0;
  if (known.length > 0) {
    for (const found of text.matchAll(/[\p{L}\p{N}]+/gu)) {
      const word = found[0].toLowerCase();
      const fits = (one) => one === word || (one.length > 3 && word.startsWith(one)) || (word.length > 4 && one.startsWith(word));
      if (!known.some(fits)) continue;
      if (found.index > done) parts.push(text.slice(done, found.index));
      parts.push(make("mark", "", found[0]));
      done = found.index + found[0].length;
    }
  }
  parts.push(text.slice(done));
  return parts;
}

// What is wanted has changed.
function changed(push) {
  wanted.limit = LIMIT;
  writeAddress(push);
  search();
}

at("query").addEventListener("input", () => {
  wanted.query = at("query").value.trim();
  wanted.limit = LIMIT;
  writeAddress(false);
  clearTimeout(waiting);
  waiting = setTimeout(search, DEBOUNCE_MS);
});

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  wanted.query = at("query").value.trim();
  changed(true);
});

at("more").addEventListener("click", () => {
  const before = at("results").children.length;
  wanted.limit = Math.min(LIMIT_MAX, wanted.limit * 2);
  search(before);
});

addEventListener("popstate", () => {
  readAddress();
  writeAddress(false);
  begin();
});

// Another pipeline was chosen: its state, its results, and none of what was shown of the one before.
function begin() {
  shownChanges = "";
  at("state").hidden = true;
  [filters, titleField] = [[], null];
  poll();
  search();
}

at("pipelines").addEventListener("change", () => {
  const chosen = at("pipelines").selectedOptions[0];
  wanted.pipeline = chosen.dataset.default === "true" ? null : chosen.value;
  // Another pipeline has other fields.
  wanted.filter.clear();
  wanted.limit = LIMIT;
  writeAddress(true);
  begin();
});

// The keyboard: `/` to the search, arrows between it and the results, Escape back.

const openers = () => [...at("results").querySelectorAll("h3 button")];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const input = at("query");
  const isTyping = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !isTyping && !at("search").hidden) {
    input.focus();
    input.select();
  } else if (event.key === "Escape" && at("search").contains(event.target) && event.target !== input) {
    input.focus();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const list = openers();
    const item = event.target.closest("#results > li");
    const here = item ? [...at("results").children].indexOf(item) : event.target === input ? -1 : NaN;
    if (Number.isNaN(here) || list.length === 0) return;
    const next = here + (event.key === "ArrowDown" ? 1 : -1);
    if (next < 0) input.focus();
    else if (next < list.length) list[next].focus();
  } else {
    return;
  }
  event.preventDefault();
});

// The state.

let timer = 0;
let polls = 0;
let silentSince = null;
let shownChanges = "";
let shownTimes = [];

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  const mine = ++polls;
  let pause = POLL_MS;
  try {
    const wasLocked = locked;
    const state = await ask(wasLocked ? "health/" : under("status"));
    if (mine !== polls) return;
    silentSince = null;
    at("state").classList.remove("silent");
    showHealth(state.status);
    if (!wasLocked) showState(state);
  } catch (error) {
    if (mine !== polls) return;
    if (!(error instanceof Refused)) {
      silentSince = silentSince || new Date();
      at("state").classList.add("silent");
      showHealth("silent");
      pause = POLL_SILENT_MS;
    }
  }
  timer = setTimeout(poll, pause);
}

function showHealth(status) {
  at("health").dataset.status = status;
  say(at("health"), status === "silent" ? `no answer since ${silentSince.toLocaleTimeString()}, trying again` : status);
}

function showState(state) {
  const isFirst = at("state").hidden;
  at("state").hidden = false;
  at("elsewhere").hidden = state.searches;
  at("search").hidden = !state.searches;
  say(at("pipeline"), state.pipeline);
  showPipelines(state);
  const knew = filters.join() + titleField;
  [filters, titleField] = [state.filters, state.title_field];
  // Results that came before this was known lack their titles and filters.
  if (knew !== filters.join() + titleField && at("results").children.length > 0) search();
  showFaults(state);
  showStores(state);
  showChanges(state, isFirst);
}

function showPipelines(state) {
  at("choice").hidden = state.pipelines.length < 2;
  const names = state.pipelines.map((one) => one.name).join();
  if ([...at("pipelines").options].map((one) => one.value).join() !== names) {
    const options = state.pipelines.map((one) => {
      const option = make("option", "", one.name);
      option.value = one.name;
      option.dataset.default = String(one.default);
      return option;
    });
    at("pipelines").replaceChildren(...options);
  }
  if (at("pipelines").value !== state.pipeline) at("pipelines").value = state.pipeline;
}

function showFaults(state) {
  const faults = state.faults.map((fault) => `${fault.component}: ${fault.error}`);
  if (state.waits_for && faults.length === 0) faults.push(`waits for ${state.waits_for}`);
  const shown = [...at("faults").children].map((item) => item.textContent);
  if (shown.join("\n") !== faults.join("\n")) at("faults").replaceChildren(...faults.map((fault) => make("li", "", fault)));
  at("load").hidden = state.load === null;
  if (state.load) say(at("load"), `Reading the table: ${number.format(state.load.rows)} of about ${number.format(state.load.expected)} rows.`);
}

function showStores(state) {
  const answering = state.stores.find((store) => store.name === state.served_by) || state.stores[0];
  const rows = state.stores.map((store) => store.rows).find((count) => count !== null);
  say(at("rows"), rows === undefined ? "–" : number.format(rows));
  say(at("behind"), age(answering ? answering.staleness_ms : null));
  say(at("answers"), state.served_by || "nobody");
  const count = (value) => (value === null ? "–" : number.format(value));
  const lines = state.stores.map((store) => {
    const name = make("th", "", store.name);
    name.scope = "row";
    name.title = store.status;
    const cells = [count(store.points), age(store.staleness_ms), count(store.lag_records)].map((text) => make("td", "", text));
    const line = make("tr", "", name, ...cells);
    line.dataset.status = store.status;
    return line;
  });
  at("stores").tBodies[0].replaceChildren(...lines);
  at("stores").hidden = lines.length === 0;
}

const DONE = { upsert: "stored", delete: "removed", truncate: "emptied" };

function showChanges(state, isFirst) {
  const now = Date.parse(`${state.timestamp}Z`);
  const changes = state.changes.slice(0, CHANGES_SHOWN);
  const text = JSON.stringify(changes);
  if (text !== shownChanges) {
    const before = new Set(shownChanges ? JSON.parse(shownChanges).map(changeKey) : []);
    shownChanges = text;
    shownTimes = [];
    const items = changes.map((change) => changeItem(change, !isFirst && !before.has(changeKey(change))));
    at("changes").replaceChildren(...items);
    at("quiet").hidden = items.length > 0;
    if (!isFirst) refresh();
  }
  for (const [element, time] of shownTimes) say(element, ago(now - time));
}

function changeKey(change) {
  return JSON.stringify([change.op, change.id, change.committed_at]);
}

function changeItem(change, isNew) {
  const what = change.op === "truncate" ? "the table" : change.title || `id ${shownId(change.id)}`;
  const title = make("div", change.op === "upsert" ? "title" : "title gone", what);
  const how = make("div", "how", make("span", "", DONE[change.op] + (change.title ? ` id ${shownId(change.id)}` : "")));
  if (change.committed_at) {
    const time = make("time", "", "");
    time.dateTime = change.committed_at;
    time.title = new Date(change.committed_at).toLocaleString();
    shownTimes.push([time, Date.parse(change.committed_at)]);
    how.append(time);
  }
  const took = Object.entries(change.latency_ms).map(([store, ms]) => `${duration(ms)} to ${store}`);
  how.append(make("span", "", took.join(", ")));
  return make("li", isNew ? "new" : "", title, how);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});

readAddress();
writeAddress(false);
showFilters();
poll();
search();
if (!wanted.query && matchMedia("(min-width: 48rem)").matches) at("query").focus({ preventScroll: true });
