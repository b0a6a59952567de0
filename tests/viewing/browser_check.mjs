// Opens pages in headless Chromium at two widths, light and dark, and prints as JSON what each did and what axe-core finds.
// Arguments: a folder with @sparticuz/chromium, puppeteer-core and axe-core in node_modules, then HTML files.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, ...files] = process.argv.slice(2);
const require = createRequire(join(folder, "package.json"));
const { default: chromium } = await import(pathToFileURL(require.resolve("@sparticuz/chromium")));
const { default: puppeteer } = await import(pathToFileURL(require.resolve("puppeteer-core")));
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"], executablePath: await chromium.executablePath(), headless: "shell",
});
const seen = [];
for (const file of files) for (const scheme of ["light", "dark"]) for (const width of [1280, 390]) {
  const page = await browser.newPage();
  const found = { file, scheme, width, console: [], requests: [] };
  page.on("console", (message) => found.console.push(message.text()));
  page.on("pageerror", (error) => found.console.push(String(error)));
  page.on("dialog", async (dialog) => { found.console.push("dialog"); await dialog.dismiss(); });
  page.on("request", (request) => found.requests.push(request.url()));
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(file).href);
  await page.evaluate(() => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
  found.scrollWidth = await page.evaluate(() => document.documentElement.scrollWidth);
  const box = await page.$("#search");
  if (box) {
    await box.type("a");
    await page.focus(".tokens");
    await page.keyboard.press("ArrowRight");
    found.count = await page.$eval("#count", (each) => each.textContent);
    found.numbers = await page.$eval("#numbers", (each) => each.textContent);
  }
  // axe is injected past the page's policy, after what the page itself did was seen.
  const client = await page.createCDPSession();
  await client.send("Runtime.evaluate", { expression: axe });
  found.violations = await page.evaluate(async () =>
    (await window.axe.run(document)).violations.map(({ id, impact, nodes }) => ({ id, impact, html: nodes[0].html })));
  seen.push(found);
  await page.close();
}
await browser.close();
console.log(JSON.stringify(seen));
