"use strict";
// Everything that a mediator wrote is set as text, never as markup.

const byId = (id) => document.getElementById(id);
const LOOK_MS = 2000;
const EVENTS_MAX = 300;

function node(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---- words for figures

function scaled(value, unit) {
  const steps = ["", "k", "M", "G", "T"];
  let step = 0;
  while (Math.abs(value) >= 1000 && step < steps.length - 1) { value /= 1000; step += 1; }
  const digits = step === 0 ? (Number.isInteger(value) ? 0 : 1) : value < 10 ? 2 : value < 100 ? 1 : 0;
  return value.toFixed(digits) + " " + steps[step] + unit;
}
const count = (value) => Number(value).toLocaleString("en");
const bits = (value) => scaled(value, "bit/s");
const bytes = (value) => scaled(value, "B");
const each = (value) => scaled(value, "/s");
const percent = (value) => value.toFixed(value < 10 ? 1 : 0) + " %";
function time(seconds) {
  const day = Math.floor(seconds / 86400), hour = Math.floor(seconds / 3600) % 24, minute = Math.floor(seconds / 60) % 60;
  if (day) return `${day} d ${hour} h`;
  if (hour) return `${hour} h ${minute} min`;
  if (minute) return `${minute} min ${Math.floor(seconds) % 60} s`;
  return `${Math.floor(seconds)} s`;
}
const micros = (value) => (value === null || value === undefined ? "–" : value < 10000 ? (value / 1000).toFixed(1) + " ms" : Math.round(value / 1000) + " ms");

// ---- pieces of the page

function tiles(list, pairs) {
  list.replaceChildren(...pairs.map(([name, value]) => {
    const box = node("div");
    box.append(node("dt", name), node("dd", value, String(value).length > 13 ? "long" : undefined));
    return box;
  }));
}

function rows(table, header, lines) {
  if (!lines.length) { table.replaceChildren(node("caption", "none", "none")); return; }
  const parts = [];
  if (header) {
    const head = node("tr");
    head.append(...header.map(([name, className]) => node("th", name, className)));
    const group = node("thead");
    group.append(head);
    parts.push(group);
  }
  const body = node("tbody");
  for (const line of lines) {
    const row = node("tr");
    line.forEach((cell, at) => {
      const className = header ? header[at][1] : at === line.length - 1 && line.number ? "number" : undefined;
      if (cell instanceof Node) { const box = node("td", null, className); box.append(cell); row.append(box); }
      else row.append(node("td", cell, className));
    });
    if (line.help) row.title = line.help;
    body.append(row);
  }
  parts.push(body);
  table.replaceChildren(...parts);
}

const SVG = "http://www.w3.org/2000/svg";
function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Lines over time: [[name, values], ...], one scale from zero.
function graph(title, lines, words) {
  const figure = node("figure"), caption = node("figcaption");
  caption.append(node("b", title));
  const top = Math.max(...lines.flatMap(([, values]) => values), 0);
  const svg = shape("svg", { viewBox: "0 0 600 100", preserveAspectRatio: "none", role: "img", "aria-label": title });
  for (const y of [0.5, 50, 99.5]) svg.append(shape("path", { class: "grid", d: `M0 ${y}H600` }));
  lines.forEach(([name, values], at) => {
    const last = values.length ? values[values.length - 1] : 0;
    caption.append(node("span", `${name ? name + " " : ""}${words(last)}`, `line${at}`));
    const x = (index) => (values.length < 2 ? 600 : (600 * index) / (values.length - 1));
    const y = (value) => 99 - (top > 0 ? (97 * value) / top : 0);
    const path = values.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    if (path) svg.append(shape("path", { class: `line${at}`, d: path }));
  });
  caption.append(node("span", `top ${words(top)}`));
  figure.append(caption, svg);
  return figure;
}

// ---- asking

let failures = 0;
async function ask(path) {
  const reply = await fetch("api/v1/" + path, { cache: "no-store" });
  if (!reply.ok) {
    const error = new Error((await reply.text()).trim() || reply.statusText);
    error.status = reply.status;
    throw error;
  }
  return reply.json();
}
function state(text, bad) {
  byId("state").textContent = text;
  byId("state").className = bad ? "bad" : "";
}

// ---- views

let memory = null; // of one mediator's figures

async function showOverview() {
  const [now, past] = await Promise.all([ask("overview"), ask("history?span=" + byId("span").value)]);
  const last = (values) => (values.length ? values[values.length - 1] : 0);
  state(`version ${now.relay_version}, up ${time(now.uptime_s)}`);
  tiles(byId("tiles"), [
    ["Mediators", count(now.tunnels)], ["Terminals", count(now.terminals)], ["Streams", count(now.streams)],
    ["UDP flows", count(now.flows)], ["Handshakes", count(now.handshakes)], ["Attached", each(last(past.attached))],
    ["From mediators", bits(last(past.bits_in))], ["To mediators", bits(last(past.bits_out))],
    ["Drops", each(last(past.drops))], ["Listens", now.listen + (now.plaintext ? " (plaintext)" : "")],
  ]);
  byId("graphs").replaceChildren(
    graph("Streams' payload", [["from mediators", past.bits_in], ["to mediators", past.bits_out]], bits),
    graph("Datagrams", [["from mediators", past.packets_in], ["to mediators", past.packets_out]], each),
    graph("Mediators", [["connected", past.tunnels]], (value) => count(Math.round(value))),
    graph("Streams and flows", [["streams", past.streams], ["flows", past.flows]], (value) => count(Math.round(value))),
    graph("Dropped datagrams", [["", past.drops]], each),
    graph("Mediators attached", [["", past.attached]], each),
  );
  const listed = (table, entries) => rows(byId(table), null, entries.map((entry) => {
    const line = [entry.name || entry.reason, count(entry.value)];
    line.number = true;
    line.help = entry.help;
    return line;
  }));
  listed("drops", now.drops);
  listed("refusals", now.refusals);
  listed("ends", now.ends);
}

let after = "", next = "";
async function showMediators() {
  const search = byId("search").value.trim();
  const page = await ask(`tunnels?limit=50&search=${encodeURIComponent(search)}&after=${encodeURIComponent(after)}`);
  const n = "number", l = "late", nl = "number late";
  rows(byId("mediators"),
    [["Name"], ["Address"], ["Up", n], ["Idle", n], ["Ports", n], ["UDP", nl], ["Round trip", n], ["In", n], ["Out", n], ["Host", l], ["Service", l]],
    page.tunnels.map((row) => {
      const link = node("a", row.id);
      link.href = "#mediator/" + row.id;
      return [link, row.observed, time(row.age_s), time(row.idle_s), count(row.ports), `${row.udp_channels_live}/${row.udp_channels}`,
        micros(row.rtt_us), bytes(row.bytes_in), bytes(row.bytes_out), row.report.hostname, row.report.service];
    }));
  next = page.more ? page.tunnels[page.tunnels.length - 1].id : "";
  byId("next").disabled = !page.more;
  byId("first").disabled = !after;
  byId("page-note").textContent = page.more ? "there are more" : "";
  state("mediators");
}

async function showMediator(id) {
  byId("mediator-name").textContent = id;
  let now;
  try {
    now = await ask("tunnels/" + id);
  } catch (error) {
    if (error.status !== 404) throw error;
    state("this mediator is not connected", true);
    return;
  }
  const row = now.tunnel, at = Date.now() / 1000;
  if (!memory || memory.id !== id || memory.session !== row.session) memory = { id, session: row.session, last: null, in: [], out: [], rtt: [] };
  if (memory.last) {
    const seconds = Math.max(at - memory.last.at, 0.001);
    const add = (list, value) => { list.push(value); if (list.length > 300) list.shift(); };
    add(memory.in, (8 * Math.max(row.bytes_in - memory.last.in, 0)) / seconds);
    add(memory.out, (8 * Math.max(row.bytes_out - memory.last.out, 0)) / seconds);
    add(memory.rtt, row.rtt_us || 0);
  }
  memory.last = { at, in: row.bytes_in, out: row.bytes_out };
  state(`${row.observed}, shard ${row.shard}, up ${time(row.age_s)}`);
  tiles(byId("mediator-tiles"), [
    ["Ports", count(row.ports)], ["Terminals", count(row.terminals)], ["UDP channels", `${row.udp_channels_live} of ${row.udp_channels}`],
    ["Round trip", micros(row.rtt_us)], ["Keep-alive", row.udp_period_s ? time(row.udp_period_s) : "–"], ["Idle", time(row.idle_s)],
    ["Bytes in", bytes(row.bytes_in)], ["Bytes out", bytes(row.bytes_out)], ["Datagrams in", count(row.datagrams_in)],
    ["Datagrams out", count(row.datagrams_out)],
  ]);
  byId("mediator-graphs").replaceChildren(
    graph("Payload", [["from it", memory.in], ["to it", memory.out]], bits),
    graph("Round trip", [["", memory.rtt]], micros),
  );
  rows(byId("environment"), null, flat(row.report));
  rows(byId("ports"), [["Port", "number"], ["Kind"], ["Of"]], now.ports.map((port) => [port.id, port.kind, port.of]));
  byId("ports-note").textContent = now.ports_more ? "there are more ports than these" : "";
  rows(byId("terminals"), [["Name"], ["Address"]], now.terminals.map((terminal) => [terminal.name, terminal.observed]));
}

// An object's leaves, one line each.
function flat(value, name = "") {
  if (value === null || value === "" || (typeof value === "object" && !Object.keys(value).length)) return [];
  if (Array.isArray(value) && value.every((part) => typeof part !== "object")) return [[name, value.join(", ")]];
  if (typeof value === "object") return Object.entries(value).flatMap(([key, part]) => flat(part, name ? `${name} ${key}` : key));
  return [[name.replaceAll("_", " "), String(value)]];
}

async function showShards() {
  const [now, past] = await Promise.all([ask("shards"), ask("history")]);
  const numbers = now.shards.map((_, number) => number);
  byId("shard-graphs").replaceChildren(...numbers.map((number) =>
    graph(`Shard ${number}`, [["of a core", past.load.map((all) => all[number] || 0)]], percent)));
  const names = Object.keys(now.shards[0] || {}).filter((name) => now.shards.some((shard) => shard[name]));
  rows(byId("shards"), [["Counter"], ["Total", "number"], ...numbers.map((number) => [`Shard ${number}`, "number"])],
    names.map((name) => [name, count(now.shards.reduce((sum, shard) => sum + shard[name], 0)), ...now.shards.map((shard) => count(shard[name]))]));
  state("shards");
}

// ---- events

let source = null;
function listen(list, id) {
  if (source) source.close();
  source = null;
  if (!list) return;
  list.replaceChildren();
  source = new EventSource("api/v1/events" + (id ? "?id=" + encodeURIComponent(id) : ""));
  source.onmessage = (message) => {
    const event = JSON.parse(message.data), line = node("li");
    const at = new Date(event.at_ms), stamp = node("time", at.toLocaleTimeString("en-GB"));
    stamp.dateTime = at.toISOString();
    stamp.title = at.toLocaleString();
    line.append(stamp, node("span", event.what, event.what));
    if (event.mediator && !id) {
      const link = node("a", event.mediator);
      link.href = "#mediator/" + event.mediator;
      line.append(link);
    }
    line.append(node("span", event.text));
    list.prepend(line);
    while (list.childElementCount > EVENTS_MAX) list.lastChild.remove();
  };
}

// ---- which view

let view = "", looking = 0;
function parse() {
  const [name, id] = location.hash.slice(1).split("/");
  return ["mediators", "shards", "events"].includes(name) ? [name] : name === "mediator" && id ? [name, id] : ["overview"];
}
async function look() {
  clearTimeout(looking);
  const [name, id] = parse();
  try {
    if (!document.hidden) {
      if (name === "overview") await showOverview();
      if (name === "mediators") await showMediators();
      if (name === "mediator") await showMediator(id);
      if (name === "shards") await showShards();
      if (name === "events") state("events as they come");
    }
    failures = 0;
  } catch (error) {
    failures += 1;
    state(`no answer: ${error.message}`, true);
  }
  clearTimeout(looking);
  looking = setTimeout(look, Math.min(LOOK_MS * 2 ** Math.min(failures, 4), 30000));
}
function go() {
  const [name, id] = parse(), wanted = name + "/" + (id || "");
  if (wanted !== view) {
    view = wanted;
    for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== "view-" + name;
    for (const link of document.querySelectorAll("nav a")) {
      const mine = link.hash === "#" + (name === "mediator" ? "mediators" : name);
      if (mine) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    listen(name === "events" ? byId("all-events") : name === "mediator" ? byId("mediator-events") : null, id);
  }
  look();
}

let typing = 0;
byId("search-form").addEventListener("submit", (event) => event.preventDefault());
byId("search").addEventListener("input", () => { clearTimeout(typing); after = ""; typing = setTimeout(look, 200); });
byId("first").addEventListener("click", () => { after = ""; look(); });
byId("next").addEventListener("click", () => { after = next; look(); });
byId("span").addEventListener("change", look);
document.addEventListener("visibilitychange", look);
window.addEventListener("hashchange", go);
go();
