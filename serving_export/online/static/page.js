// A session in progress, and the lists that go with it. What is shown follows from `state`; every change asks anew.

import * as api from "./api.js";
import { makeChoice } from "./choice.js";
import { category, element, nameOf, text } from "./elements.js";
import { drawEvents, drawHistory, drawIntents, drawList, markInfluence, markPartners, tellBefore, tellOverlap } from "./draw.js";

const LENGTH = 12; // of longer lists the rest is not shown
const state = { user: "", past: [], session: [], channel: "", models: ["", ""], answers: [null, null] };
const at = (id) => document.getElementById(id);
const sides = [...document.querySelectorAll(".side")];
let asking = new AbortController();

function change(next, words) {
  Object.assign(state, next);
  remember();
  drawEvents(at("events"), state.session);
  at("no-events").hidden = state.session.length > 0;
  at("clear").hidden = state.session.length === 0;
  return refresh(words);
}

const add = (item) => change({ session: [...state.session, item] }, `${nameOf(item)} is in the session.`);

function remove(place) {
  const left = state.session.filter((_, other) => other !== place);
  change({ session: left }, `${nameOf(state.session[place])} is out of the session.`);
  (at("events").querySelectorAll("button")[Math.min(place, left.length - 1)] ?? at("search")).focus();
}

async function chooseUser(user) {
  at("user").value = user;
  change({ user, past: [] }, user ? `User ${user}.` : "Nobody in particular.");
  const known = user ? await api.history(user).catch((fault) => ({ items: [], note: fault.message })) : { items: [] };
  if (state.user !== user) return;
  state.past = known.items;
  drawHistory(at("history"), state.past.toReversed(), add);
  at("no-history").hidden = state.past.length > 0;
  at("no-history").textContent = known.note ?? "An unknown visitor has none.";
}

// Ask for the lists of the present state, and show them together.
async function refresh(words) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const started = performance.now();
  sides.forEach((side) => side.setAttribute("aria-busy", "true"));
  try {
    const wanted = [listOf(state.models[0], signal), state.models[1] ? listOf(state.models[1], signal) : null];
    const [first, second] = await Promise.all(wanted);
    if (signal.aborted) return;
    complain(null);
    show([first, second], performance.now() - started, words);
  } catch (fault) {
    if (!signal.aborted) complain(fault);
  } finally {
    if (!signal.aborted) sides.forEach((side) => side.removeAttribute("aria-busy"));
  }
}

// Before the first click a known user has last night's list; the endpoint answers the rest.
async function listOf(model, signal) {
  const isFirst = state.user && !state.session.length && !model;
  const [night, intents] = isFirst
    ? await Promise.all([api.lastNight, api.intentsOf].map((of) => of(state.user, signal).catch(() => null)))
    : [null, null];
  if (!night) return shortened(await api.recommend(question(model), signal));
  const list = night.lists.find(({ channel }) => channel === state.channel) ?? night.lists[0];
  const note = night.note ?? `Last night's list, made from data through ${night.data_through}.`;
  return shortened({ ...night, items: list?.items ?? [], note, intents: intents?.intents });
}

const shortened = (answer) => ({ ...answer, items: answer.items.slice(0, LENGTH) });

function question(model) {
  return {
    items: state.session.map(({ item_id }) => ({ item_id })),
    explain: true,
    ...(state.user && { user_id: state.user }),
    ...(state.channel && { channel: state.channel }),
    ...(model && { model: Number(model) }),
  };
}

function show(answers, milliseconds, words) {
  state.answers = answers;
  sides.forEach((side, place) => {
    const answer = answers[place];
    drawList(side.querySelector(".list"), answer?.items ?? [], { session: state.session, add });
    side.querySelector(".note").textContent = answer?.note ?? "";
    side.classList.toggle("empty", place > 0 && !answer);
  });
  at("lists").classList.toggle("two", Boolean(answers[1]));
  at("overlap").textContent = tellOverlap(answers);
  markPartners(sides);
  influenceOf(answers[0]?.items[0]);
  const intents = answers.find((answer) => answer?.intents && Object.keys(answer.intents).length)?.intents;
  at("intents").hidden = !intents;
  drawIntents(at("bars"), intents ?? {});
  const { model_version: version, release, items } = answers[0];
  const facts = [version && `model version ${version}`, release != null && `release ${release}`];
  at("facts").textContent = [...facts, `${Math.max(1, Math.round(milliseconds))} ms`].filter(Boolean).join(" · ");
  at("told").textContent = [words, items.length ? `First of ${items.length}: ${nameOf(items[0])}.` : "The list is empty."]
    .filter(Boolean)
    .join(" ");
}

// How the events, and what the user did before, weigh in one item of a list.
function influenceOf(item) {
  const reasons = item?.reasons ?? [];
  const ofSession = reasons.filter((reason) => reason.of !== "history");
  at("influence").hidden = !reasons.length;
  at("influenced").textContent = item ? nameOf(item) : "";
  at("before").textContent = tellBefore(reasons.filter((reason) => reason.of === "history"), state.past);
  markInfluence(at("events"), ofSession);
}

function complain(fault) {
  if (fault?.name === "AbortError") return;
  at("fault").hidden = !fault;
  at("fault").textContent = fault?.message ?? "";
}

// The address keeps the state, so that a reload or a link shows the same.
function remember() {
  const kept = new URLSearchParams();
  if (state.user) kept.set("user", state.user);
  for (const { item_id } of state.session) kept.append("item", item_id);
  if (state.channel) kept.set("channel", state.channel);
  state.models.forEach((model, place) => model && kept.set(`model-${place}`, model));
  history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname + location.search);
}

async function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const chosen = (id) => {
    if (kept.has(id)) at(id).value = kept.get(id);
    return at(id).value;
  };
  state.models = [chosen("model-0"), chosen("model-1")];
  state.channel = chosen("channel");
  state.session = await Promise.all(kept.getAll("item").map(itemOf));
  await chooseUser(kept.get("user") ?? "");
}

async function itemOf(item_id) {
  const found = await api.items(item_id).catch(() => ({ items: [] }));
  return found.items.find((item) => item.item_id === item_id) ?? { item_id };
}

// Walk through buttons of a list with the arrow keys; another list is to the left or right.
function walk(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const place = buttons.indexOf(document.activeElement);
  if (place < 0) return;
  const other = { ArrowRight: sides[1], ArrowLeft: sides[0] }[event.key];
  const next = other?.contains(event.currentTarget) === false && event.currentTarget.matches(".list")
    ? [...other.querySelectorAll("button")][place]
    : { Home: buttons[0], End: buttons.at(-1) }[event.key] ?? buttons[place + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function listen() {
  makeChoice(at("user"), at("users"), {
    find: async (words, signal) => {
      const { users, note } = await api.users(words, signal);
      at("no-users").textContent = note ?? "";
      return users;
    },
    show: (user) => [text("name", user.user_id)],
    take: (user) => chooseUser(user.user_id),
    takeText: chooseUser,
  });
  at("user").addEventListener("blur", () => {
    at("user").value = state.user; // what was typed and not entered is no choice
  });
  makeChoice(at("search"), at("found"), {
    find: async (words, signal) => (await api.items(words, signal)).items,
    show: (item) => [text("name", nameOf(item)), category(item.category)],
    take: (item) => {
      at("search").value = "";
      add(item);
    },
  });
  at("clear").addEventListener("click", () => {
    change({ session: [] }, "The session is empty.");
    at("search").focus();
  });
  at("events").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button) remove(Number(button.dataset.place));
  });
  at("events").addEventListener("keydown", (event) => {
    const button = event.target.closest("button");
    if (button && ["Delete", "Backspace"].includes(event.key)) remove(Number(button.dataset.place));
  });
  sides.forEach((side, place) => {
    const pointed = ({ target }) => {
      const row = target.closest("li");
      if (row) influenceOf(state.answers[place]?.items[[...row.parentNode.children].indexOf(row)]);
    };
    side.addEventListener("pointerover", pointed);
    side.addEventListener("focusin", pointed);
    side.addEventListener("pointerleave", () => influenceOf(state.answers[0]?.items[0]));
    at(`model-${place}`).addEventListener("change", ({ target }) => {
      change({ models: state.models.with(place, target.value) }, "");
    });
  });
  at("channel").addEventListener("change", ({ target }) => change({ channel: target.value }, ""));
  for (const list of [at("history"), at("events"), ...document.querySelectorAll(".list")]) {
    list.addEventListener("keydown", walk);
  }
}

function modelOption({ model_version, recipe, kind, is_serving }) {
  const told = is_serving ? "serving" : kind;
  return element("option", { value: model_version }, `${recipe}, version ${model_version}${told ? ` (${told})` : ""}`);
}

async function start() {
  listen();
  try {
    const [{ models }, { site, channels }] = await Promise.all([api.models(), api.ready()]);
    at("site").textContent = site;
    document.title = `${site}: a session in progress`;
    at("model-0").append(element("option", { value: "" }, "the one that serves"), ...models.map(modelOption));
    at("model-1").append(element("option", { value: "" }, "none"), ...models.map(modelOption));
    at("channel").append(...channels.map((name) => element("option", { value: name }, name)));
    at("channels").hidden = channels.length < 2;
  } catch (fault) {
    complain(fault);
  }
  await recall();
}

start();
