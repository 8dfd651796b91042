
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const { tokens, promptTokens, split, selectLayers, numHeads, steps } = data;
  const LEVELS = 8;
  const slider = byId("step");
  const shown = { step: 0, column: 0, shading: "event" };

  // Events

  const events = steps.map((row, step) => row.map((encoded) => decode(encoded, promptTokens + step + 1)));

  /** An event: n cached tokens, who is in the set (1 byte per position), sinks, window, and the chosen ones' keys. */
  function decode(encoded, n) {
    if (encoded.set === null) {
      return { n, dense: true, size: n, has: new Uint8Array(n).fill(1), sinks: 0, window: n, keyOf: new Map(), order: new Map() };
    }
    const has = new Uint8Array(n);
    const sinks = split.sinks;
    const keyOf = new Map();
    let position = 0;
    encoded.set.forEach((delta, index) => {
      position += delta;
      has[position] = 1;
      const key = encoded.keys[index - sinks];
      if (index >= sinks && key !== undefined) keyOf.set(position, key);
    });
    const order = new Map([...keyOf.values()].sort((a, b) => a - b).map((key, place) => [key, place]));
    return { n, dense: false, size: encoded.set.length, has, sinks, window: n - split.recent, keyOf, order };
  }

  /** How many of the events up to a step, of all layers or one, hold each position. */
  function count(lastStep, column = null) {
    const counts = new Uint32Array(tokens.length);
    for (const row of events.slice(0, lastStep + 1)) {
      for (const event of column === null ? row : [row[column]]) {
        for (let position = 0; position < event.n; position += 1) counts[position] += event.has[position];
      }
    }
    return counts;
  }

  /** At how many steps up to a step a position was cached. */
  const stepsCached = (position, lastStep) => Math.max(0, lastStep + 1 - Math.max(0, position - promptTokens));

  const last = events.length - 1;
  const overall = count(last);
  const overallByLayer = selectLayers.map((_, column) => count(last, column));

  // The page's head

  function showHead() {
    const generated = tokens.length - promptTokens;
    const parts = `${split.selected} by rank, ${split.sinks} sinks, ${split.recent} recent`;
    const attending = data.numAttending < data.numLayers ? `, ${data.numAttending} of which attend` : "";
    const facts = [
      ["Budget K", `${split.budget} (${parts})`],
      ["Recency ratio", data.recencyRatio],
      ["Sinks", data.sinkTokens],
      ["Select layers", `${selectLayers.join(", ")} of ${data.numLayers}${attending} (${data.source})`],
      ["Query heads", numHeads],
      ["Prompt tokens", promptTokens],
      ["Generated tokens", `${generated}${data.stopped ? " (ended by itself)" : ""}`],
    ];
    for (const [name, value] of facts) {
      const box = document.createElement("div");
      box.append(textElement("dt", name), textElement("dd", String(value)));
      byId("facts").append(box);
    }
    byId("model").textContent = data.model;
    document.title = `lim-sglang inspect: ${data.model}`;
    byId("notice").textContent = notice();
    byId("notice").hidden = notice() === "";
  }

  function notice() {
    if (steps.length === 0) return "Nothing is sparse here: the prefill gave the only generated token, and no decode step followed.";
    const most = promptTokens + steps.length;
    if (most <= split.budget) {
      return `Nothing is sparse here: the last step saw ${most} tokens, the budget is ${split.budget}, and within the budget every ` +
        "layer reads everything. Take a longer prompt, a larger --max-tokens or a smaller --budget.";
    }
    if (data.numSparse === 0) return "Nothing is sparse here: no layer comes after the last select layer to read its set.";
    return "";
  }

  function textElement(tag, text) {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
  }

  // Tokens

  const spans = tokens.map((text, position) => {
    const span = textElement("span", text);
    span.position = position;
    return span;
  });

  const fixedClasses = tokens.map((text, position) => [
    "t",
    ...(position >= promptTokens ? ["generated"] : []),
    ...(text === "" ? ["part"] : []),
    ...(text.includes("\n") && text.trim() === "" ? ["break"] : []),
  ].join(" "));

  function level(event, counts, position) {
    if (counts === null) return event !== undefined && event.has[position] ? LEVELS : 0;
    const lastStep = shown.shading === "sofar" ? shown.step : last;
    const chances = stepsCached(position, lastStep) * selectLayers.length;
    return chances === 0 ? 0 : Math.ceil((counts[position] / chances) * LEVELS);
  }

  function classesOf(event, counts, position) {
    let classes = `${fixedClasses[position]} f${level(event, counts, position)}`;
    if (event === undefined) return classes;
    if (position >= event.n) return `${classes} later`;
    if (position === event.n - 1) classes += " query";
    if (event.keyOf.has(position)) return `${classes} chosen`;
    if (position < event.sinks) return `${classes} sink${edges(position, 0, event.sinks)}`;
    if (position >= event.window) return `${classes} window${edges(position, event.window, event.n)}`;
    return classes;
  }

  const edges = (position, start, end) =>
    (position === start ? " edge-start" : "") + (position === end - 1 ? " edge-end" : "");

  function show() {
    const event = events[shown.step]?.[shown.column];
    const counts = shown.shading === "event" ? null : shown.shading === "sofar" ? count(shown.step) : overall;
    spans.forEach((span, position) => {
      const classes = classesOf(event, counts, position);
      if (span.className !== classes) span.className = classes;
    });
    byId("event").textContent = event === undefined ? "" : describe(event);
    byId("step-number").textContent = `${event === undefined ? 0 : shown.step + 1} of ${steps.length}`;
    slider.value = String(shown.step + 1);
    byId("layers").querySelectorAll("input").forEach((input, column) => { input.checked = column === shown.column; });
    showStrip(event);
    if (pointed !== null) showTip(pointed);
  }

  function describe(event) {
    const written = event.n < tokens.length ? ` and writes ${quoted(event.n)}` : "";
    const fed = `Step ${shown.step + 1} reads ${quoted(event.n - 1)} at position ${event.n - 1}${written}. `;
    const layer = `Select layer ${selectLayers[shown.column]}: `;
    if (event.dense) return `${fed}${layer}all ${event.n} tokens, which the budget of ${split.budget} covers.`;
    const parts = `${event.sinks} sinks, ${event.keyOf.size} chosen by rank, ${event.n - event.window} recent`;
    return `${fed}${layer}${event.size} of ${event.n} tokens: ${parts}.`;
  }

  const quoted = (position) => (tokens[position] === "" ? "a part of a character" : `“${visible(tokens[position])}”`);
  const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥");

  /** One bar per stretch of positions, as high as the share of its tokens that the set holds. */
  function showStrip(event) {
    const bars = event === undefined ? 0 : Math.min(160, event.n);
    let path = "";
    for (let bar = 0; bar < bars; bar += 1) {
      const [from, to] = [Math.floor((bar * event.n) / bars), Math.floor(((bar + 1) * event.n) / bars)];
      const share = event.has.subarray(from, to).reduce((sum, one) => sum + one, 0) / (to - from);
      const [left, right] = [(bar * 100) / bars, ((bar + 0.85) * 100) / bars];
      path += `M${left} 100V${100 - 100 * share}H${right}V100Z`;
    }
    byId("strip-path").setAttribute("d", path);
    byId("strip").setAttribute("aria-label", "Share of the tokens that are in this set, from the first to the latest");
  }

  // What is known about one token

  let pointed = null;

  function tipLines(position) {
    const event = events[shown.step]?.[shown.column];
    const kind = position < promptTokens ? "prompt" : "generated";
    const lines = [`${quoted(position)} · position ${position} · ${kind}`];
    if (event === undefined) return lines;
    lines.push(membership(event, position));
    const layers = selectLayers.length;
    const chances = stepsCached(position, last);
    if (chances === 0) return lines;
    lines.push(`Overall: in ${overall[position]} of ${chances * layers} sets`);
    if (layers > 1) {
      lines.push(selectLayers.map((layer, column) => `layer ${layer}: ${overallByLayer[column][position]} of ${chances}`).join(", "));
    }
    return lines;
  }

  function membership(event, position) {
    if (position >= event.n) return "Not yet cached at this event";
    if (event.dense) return "In this set, as every token within the budget";
    if (position < event.sinks) return "In this set: sink";
    if (position >= event.window) return "In this set: recency window";
    if (!event.has[position]) return "Not in this set";
    const key = event.keyOf.get(position);
    const [rank, head] = [Math.floor(key / numHeads), key % numHeads];
    return `In this set: best rank ${rank}, by head ${head}; choice ${event.order.get(key) + 1} of ${event.keyOf.size}`;
  }

  function showTip(position) {
    pointed = position;
    const tip = byId("tip");
    tip.replaceChildren(...tipLines(position).map((line) => textElement("div", line)));
    tip.hidden = false;
    const token = spans[position].getClientRects()[0] ?? spans[position].getBoundingClientRect();
    const below = token.bottom + 8;
    const fits = below + tip.offsetHeight < window.innerHeight;
    tip.style.top = `${fits ? below : Math.max(0, token.top - 8 - tip.offsetHeight)}px`;
    tip.style.left = `${Math.max(4, Math.min(token.left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  }

  function hideTip() {
    pointed = null;
    byId("tip").hidden = true;
  }

  // One token at a time is in the tab order.

  let current = 0;

  function makeCurrent(position) {
    spans[current].removeAttribute("tabindex");
    spans[current].removeAttribute("aria-describedby");
    current = position;
    spans[current].tabIndex = 0;
    spans[current].setAttribute("aria-describedby", "tip");
  }

  function moveStep(by) {
    if (steps.length === 0) return;
    shown.step = Math.max(0, Math.min(last, shown.step + by));
    show();
  }

  function listen() {
    slider.addEventListener("input", () => { shown.step = Number(slider.value) - 1; show(); });
    byId("shading").addEventListener("change", (change) => { shown.shading = change.target.value; show(); });
    byId("layers").addEventListener("change", (change) => { shown.column = Number(change.target.value); show(); });
    const area = byId("tokens");
    area.addEventListener("mouseover", (over) => { if (over.target.position !== undefined) showTip(over.target.position); });
    area.addEventListener("mouseleave", hideTip);
    area.addEventListener("mousedown", (down) => { if (down.target.position !== undefined) makeCurrent(down.target.position); });
    area.addEventListener("focusin", (focus) => { if (focus.target.position !== undefined) showTip(focus.target.position); });
    area.addEventListener("focusout", hideTip);
    window.addEventListener("scroll", () => { if (pointed !== null) showTip(pointed); }, { passive: true });
    document.addEventListener("keydown", onKey);
  }

  function onKey(key) {
    if (key.ctrlKey || key.altKey || key.metaKey) return;
    const onToken = key.target.position !== undefined;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[key.key];
    if (onToken && by !== undefined) {
      makeCurrent(Math.max(0, Math.min(tokens.length - 1, current + by)));
      spans[current].focus();
    } else if (onToken && key.key === "Escape") {
      slider.focus();
    } else if (by !== undefined && key.target.type !== "radio") {
      moveStep(by);
    } else if (key.key === "l" && steps.length > 0) {
      shown.column = (shown.column + 1) % selectLayers.length;
      show();
    } else {
      return;
    }
    key.preventDefault();
  }

  // Start

  selectLayers.forEach((layer, column) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "layer", value: String(column), disabled: steps.length === 0 });
    label.append(input, String(layer));
    byId("layers").append(label);
  });
  slider.max = String(Math.max(1, steps.length));
  slider.disabled = steps.length === 0;
  byId("tokens").append(...spans);
  showHead();
  makeCurrent(0);
  listen();
  show();
})();
