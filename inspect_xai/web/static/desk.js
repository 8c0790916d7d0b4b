// The review desk's keys, slider, zoom and box. Every action also works without this file.
"use strict";

(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];

  // ---- help -------------------------------------------------------------------------------------------------------
  const help = find("#help");
  const toggleHelp = () => (help.open ? help.close() : help.showModal());
  for (const link of all("[data-help]")) {
    link.addEventListener("click", (event) => {
      if (!help) return;
      event.preventDefault();
      toggleHelp();
    });
  }

  // ---- the map over the picture -----------------------------------------------------------------------------------
  const stage = find("#stage");
  const map = find("#map");
  const slider = find("#opacity");
  const buttons = all("[data-map]");
  const off = find("#map-off");

  const mark = (chosen) => {
    for (const button of [...buttons, off]) {
      if (button === chosen) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };
  const show = () => map.setAttribute("opacity", String(Number(slider.value) / 100));
  const isOff = () => off.hasAttribute("aria-current");
  const choose = (button) => {
    map.setAttribute("href", button.dataset.map);
    mark(button);
    show();
  };
  let last = buttons.find((button) => button.hasAttribute("aria-current")) || buttons[0];
  const switchMap = () => {
    if (isOff()) choose(last);
    else {
      mark(off);
      map.setAttribute("opacity", "0");
    }
  };
  const switchOutlines = () => {
    const outlines = find("#outlines");
    const hidden = outlines.classList.toggle("off");
    find("#outlines-toggle").setAttribute("aria-pressed", String(!hidden));
  };
  if (map) {
    slider.addEventListener("input", () => {
      if (isOff()) choose(last);
      show();
    });
    for (const button of buttons) {
      button.addEventListener("click", (event) => {
        event.preventDefault();
        last = button;
        choose(button);
      });
    }
    off.addEventListener("click", (event) => {
      event.preventDefault();
      switchMap();
    });
    find("#outlines-toggle").addEventListener("click", (event) => {
      event.preventDefault();
      switchOutlines();
    });
  }

  // ---- zoom and pan: the viewBox of the stage, in pixels of the picture -------------------------------------------
  let view = null;
  const whole = () => ({ x: 0, y: 0, w: Number(stage.dataset.width), h: Number(stage.dataset.height) });
  const applyView = () => {
    stage.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`);
    const scale = Math.min(stage.clientWidth / view.w, stage.clientHeight / view.h);
    find(".pixels")?.classList.toggle("near", scale >= 4);
  };
  const zoom = (factor, at) => {
    const full = whole();
    const w = Math.min(full.w * 1.2, Math.max(8, view.w / factor));
    const ratio = w / view.w;
    const middle = at || { x: view.x + view.w / 2, y: view.y + view.h / 2 };
    view = {
      x: middle.x - (middle.x - view.x) * ratio,
      y: middle.y - (middle.y - view.y) * ratio,
      w,
      h: view.h * ratio,
    };
    applyView();
  };
  const zoomAll = () => {
    view = whole();
    applyView();
  };
  const zoomNative = () => {
    const density = window.devicePixelRatio || 1;
    const middle = { x: view.x + view.w / 2, y: view.y + view.h / 2 };
    const w = stage.clientWidth * density;
    const h = stage.clientHeight * density;
    view = { x: middle.x - w / 2, y: middle.y - h / 2, w, h };
    applyView();
  };
  const zooms = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), all: zoomAll, native: zoomNative };
  const pixelAt = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
    return { x: point.x, y: point.y };
  };

  // ---- the box ----------------------------------------------------------------------------------------------------
  const box = find("#box");
  const field = (name) => find(`[name="box_${name}"]`);
  let drawing = false;
  const setDrawing = (on) => {
    drawing = on && Boolean(field("top"));
    stage.classList.toggle("drawing", drawing);
    if (drawing) find("#more").open = true;
  };
  const drawBox = () => {
    const [top, left, height, width] = ["top", "left", "height", "width"].map((name) => Number(field(name).value));
    for (const [name, value] of Object.entries({ x: left, y: top, width, height })) {
      box.setAttribute(name, String(value || 0));
    }
  };
  const fillBox = (from, to) => {
    const full = whole();
    const clamp = (value, most) => Math.min(most, Math.max(0, Math.round(value)));
    const left = clamp(Math.min(from.x, to.x), full.w - 1);
    const top = clamp(Math.min(from.y, to.y), full.h - 1);
    field("left").value = left;
    field("top").value = top;
    field("width").value = Math.max(1, clamp(Math.max(from.x, to.x), full.w) - left);
    field("height").value = Math.max(1, clamp(Math.max(from.y, to.y), full.h) - top);
    drawBox();
  };

  if (stage) {
    view = whole();
    let from = null;
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, pixelAt(event));
    }, { passive: false });
    stage.addEventListener("pointerdown", (event) => {
      from = pixelAt(event);
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!from) return;
      const at = pixelAt(event);
      if (drawing) fillBox(from, at);
      else {
        view.x -= at.x - from.x;
        view.y -= at.y - from.y;
        applyView();
      }
    });
    stage.addEventListener("pointerup", () => {
      from = null;
      setDrawing(false);
    });
    for (const button of all("[data-zoom]")) button.addEventListener("click", () => zooms[button.dataset.zoom]());
    find("#draw")?.addEventListener("click", () => setDrawing(true));
    find("#undraw")?.addEventListener("click", () => {
      for (const name of ["top", "left", "height", "width"]) field(name).value = "";
      drawBox();
    });
    for (const input of all("[name^=box_]")) input.addEventListener("input", drawBox);
    if (field("top")?.value) drawBox();
  }

  // ---- the answer: "against the model" asks for its reason first ---------------------------------------------------
  const form = find("#judge");
  const reasons = find("#reasons");
  let pending = null;
  const reasonChosen = () => Boolean(find("[name=reason]:checked")?.value);
  const askReason = (button) => {
    pending = button;
    for (const other of all(".answer")) other.classList.toggle("chosen", other === button);
    reasons.classList.add("wanted");
    reasons.scrollIntoView({ block: "nearest" });
    reasons.querySelector("input").focus();
  };
  if (form) {
    let sent = false;
    form.addEventListener("submit", (event) => {
      const button = event.submitter;
      if (button?.value === "overturn" && reasons && !reasonChosen()) {
        event.preventDefault();
        askReason(button);
      } else if (sent) event.preventDefault();  // a second press of an impatient finger
      else sent = true;
    });
  }

  // ---- the queue's rows --------------------------------------------------------------------------------------------
  const rows = all("[data-row]");
  let row = -1;
  const goRow = (step) => {
    row = Math.min(rows.length - 1, Math.max(0, row + step));
    rows.forEach((link, index) => link.closest("tr").classList.toggle("here", index === row));
    rows[row].focus();
  };

  // ---- keys --------------------------------------------------------------------------------------------------------
  const press = (key) => {
    if (key === "?" && help) return toggleHelp();
    if (help?.open) return false;
    if (rows.length && key === "j") return goRow(1);
    if (rows.length && key === "k") return goRow(-1);
    if (pending && /^[1-9]$/.test(key)) {
      const choice = reasons.querySelector(`[data-digit="${key}"]`);
      if (choice) {
        choice.checked = true;
        choice.focus();
      }
      return true;
    }
    if (pending && key === "Enter" && reasonChosen()) return form.requestSubmit(pending);
    if (pending && key === "Escape") {
      pending = null;
      reasons.classList.remove("wanted");
      for (const button of all(".answer")) button.classList.remove("chosen");
      return true;
    }
    const answer = all("[data-answer]").find((button) => button.dataset.answer.includes(key));
    if (answer) {
      if (answer.value === "overturn") return askReason(answer);
      return form.requestSubmit(answer);
    }
    if (map && /^[0-9]$/.test(key)) return buttons.find((button) => button.dataset.digit === key)?.click();
    if (map && (key === "[" || key === "]")) {
      slider.value = String(Number(slider.value) + (key === "]" ? 10 : -10));
      return slider.dispatchEvent(new Event("input"));
    }
    if (map && key === "m") return switchMap();
    if (map && key === "x") return switchOutlines();
    if (stage && key === "b") return setDrawing(!drawing);
    if (stage && key === "Escape") return setDrawing(false);
    const byKey = { "+": "in", "=": "in", "-": "out", f: "all", n: "native" }[key];
    if (stage && byKey) return zooms[byKey]();
    const target = find(`[data-key="${CSS.escape(key)}"]`);
    return target ? target.click() : false;
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const at = event.target;
    const isRadio = at instanceof HTMLInputElement && at.type === "radio";
    const isText = at.matches("textarea, select, input") && !isRadio && at.type !== "range";
    if (isText) {
      if (event.key === "Escape") at.blur();
      return;
    }
    // Enter on a link or button is theirs, except while a reason waits to be sent.
    if (event.key === "Enter" && at.matches("a, button, summary") && !pending) return;
    if (press(event.key) !== false) event.preventDefault();
  });
})();
