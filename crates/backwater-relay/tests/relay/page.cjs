// Drives the live page as a person does, by the keyboard: node page.cjs URL TOKEN-URL TOKEN [SCREENSHOT]. Ends with an error if
// anything is not as it should be.
"use strict";
const assert = require("node:assert");
const { chromium } = require("playwright-core");

const [url, tokenUrl, token, screenshot] = process.argv.slice(2);
const PATIENCE = { timeout: 120000 };

async function open(browser, url, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 }, ...options });
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) faults.push(message.text()); });
  page.on("request", (request) => { if (new URL(request.url()).protocol !== "data:" && new URL(request.url()).origin !== new URL(url).origin) faults.push(`request to ${request.url()}`); });
  await page.goto(url);
  return { page, faults };
}

const state = (page, text) => page.waitForFunction((text) => document.getElementById("state").textContent === text, text, PATIENCE);

/** Fills in the form and starts the test with keys alone, and returns what the page says in the end. */
async function test(page, password) {
  await page.goto("about:blank");
  await page.goto(url);
  await state(page, "Working");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip", "the first stop skips to the test");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "url");
  for (const text of ["alice", password]) {
    await page.keyboard.press("Tab");
    await page.keyboard.press("Control+A");
    await page.keyboard.type(text);
  }
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("start").disabled || document.querySelector("#steps li"), null, PATIENCE);
  await page.waitForFunction(() => !document.getElementById("start").disabled, null, PATIENCE);
  return page.evaluate(() => ({
    verdict: document.getElementById("verdict").textContent,
    steps: [...document.querySelectorAll("#steps li")].map((step) => step.textContent),
  }));
}

/** What a person with a screen reader, or with weak eyes, would miss. */
function missing() {
  const faults = [];
  for (const input of document.querySelectorAll("input")) if (!input.labels.length) faults.push(`no label: ${input.id}`);
  for (const image of document.querySelectorAll("[role=img]")) if (!image.getAttribute("aria-label")) faults.push(`no text: ${image.id}`);
  for (const part of ["header", "main", "footer", "h1"]) if (document.querySelectorAll(part).length !== 1) faults.push(part);
  for (const section of document.querySelectorAll("section")) if (!document.getElementById(section.getAttribute("aria-labelledby"))) faults.push("a section without a name");
  if (document.documentElement.lang !== "en") faults.push("lang");
  const light = (color) => {
    const [r, g, b] = color.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!/, 0\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || element.localName === "input";
    if (!text || ["script", "style", "option"].includes(element.localName) || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(1)}: ${element.localName} ${element.id} ${element.textContent.slice(0, 30)}`);
  }
  return faults;
}

(async () => {
  const browser = await chromium.launch({ executablePath: process.env.BACKWATER_CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
  try {
    const { page, faults } = await open(browser, url);
    await state(page, "Working");
    await page.click("#make");
    await page.waitForFunction(() => document.getElementById("verdict").textContent, null, PATIENCE);
    assert.equal(await page.textContent("#verdict"), "The credential is filled in.");
    await page.click("#start");
    await page.waitForFunction(() => document.getElementById("verdict").className, null, PATIENCE);
    assert.equal(await page.textContent("#verdict"), "This browser can use this relay.");
    const wrong = await test(page, "wrong");
    assert.match(wrong.verdict, /error 401.*User name or password is wrong/);
    assert.deepEqual([wrong.steps.length, /failed/.test(wrong.steps[0])], [1, true]);
    const good = await test(page, "secret");
    assert.equal(good.verdict, "This browser can use this relay.", JSON.stringify(good));
    assert.equal(good.steps.length, 6);
    for (const step of good.steps) assert.match(step, /done.*\([\d.,]+ ms\)$/);
    await page.waitForFunction(() => /[^0.,]/.test(document.querySelector("#paths tr td").textContent), null, PATIENCE);
    assert.deepEqual(await page.evaluate(missing), []);
    if (screenshot) {
      await page.waitForTimeout(3000);
      await page.screenshot({ path: screenshot, fullPage: true });
    }
    await page.click("#pause");
    assert.equal(await page.getAttribute("#pause", "aria-pressed"), "true");
    assert.deepEqual(faults, []);
    await page.close();

    const phone = await open(browser, url, { viewport: { width: 320, height: 640 }, hasTouch: true, isMobile: true, colorScheme: "dark", reducedMotion: "reduce" });
    await state(phone.page, "Working");
    assert.equal(await phone.page.evaluate(() => document.documentElement.scrollWidth), 320, "nothing is beside the screen");
    assert.equal(await phone.page.evaluate(() => getComputedStyle(document.getElementById("start")).transitionDuration), "0s");
    assert.deepEqual(await phone.page.evaluate(missing), []);
    const small = await phone.page.evaluate(() => [...document.querySelectorAll("button, input")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 44).length);
    assert.equal(small, 0, "everything is large enough for a finger");
    assert.deepEqual(phone.faults, []);

    const locked = await open(browser, tokenUrl);
    await state(locked.page, "Waiting for the token");
    await locked.page.fill("#token", token);
    await locked.page.keyboard.press("Enter");
    await state(locked.page, "Working");
    assert.equal(await locked.page.isVisible("#token-card"), false);
  } finally {
    await browser.close();
  }
})().catch((error) => { console.error(error); process.exit(1); });
