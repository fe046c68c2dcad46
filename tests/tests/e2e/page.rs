//! The page of the admin port in a browser: a fleet at work, seen by the elements that a person sees.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use stoker_tests::within;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::command::Up;

/// A browser without a screen, driven by its own driver.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _home: tempfile::TempDir,
}

impl Browser {
    /// None where there is no browser: scripts/test says so.
    async fn start() -> Option<Self> {
        if std::env::var_os("STOKER_WITHOUT_CHROMIUM").is_some() {
            eprintln!("left out: there is no chromium here");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver is there: run scripts/test");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = within("chromedriver", lines.next_line()).await.unwrap().expect("it says its port");
            if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        // It has more to say while it runs.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let mut browser = Self { driver, port, session: String::new(), _home: home };
        let profile = browser._home.path().join("profile");
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 30_000, "pageLoad": 30_000},
            "goog:chromeOptions": {"args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
                // Whatever it may want of other machines: it finds none.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                format!("--user-data-dir={}", profile.display()),
            ]},
        }}});
        let made = browser.ask("POST", "/session", &wanted).await;
        browser.session =
            made["sessionId"].as_str().unwrap_or_else(|| panic!("a session: {made}")).to_owned();
        Some(browser)
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let answer = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            // It keeps the connection, whatever it is told: an answer ends where it says.
            let mut reader = BufReader::new(stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).await.unwrap() > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).await.unwrap();
            String::from_utf8(body).unwrap()
        };
        let told = within(path, answer).await;
        let answer: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{method} {path}: {told}"));
        let value = &answer["value"];
        assert!(value["error"].is_null(), "{method} {path} {body}: {value}");
        value.clone()
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        self.ask("POST", &format!("/session/{}/{path}", self.session), &body).await
    }

    async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// The value of an expression in the page.
    async fn value(&self, expression: &str) -> Value {
        self.command("execute/sync", json!({"script": format!("return ({expression});"), "args": []})).await
    }

    /// Waits until an expression is true, which is looked at whenever the page changes; then the value of another.
    async fn once(&self, condition: &str, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[0], look = () => {{ if ({condition}) {{ watch.disconnect(); done({expression}); }} }};
             const watch = new MutationObserver(look);
             watch.observe(document, {{subtree: true, childList: true, characterData: true, attributes: true}});
             look();"
        );
        self.command("execute/async", json!({"script": script, "args": []})).await
    }

    /// Presses a key.
    async fn key(&self, key: &str) {
        let press = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        self.command("actions", json!({"actions": [{"type": "key", "id": "keys", "actions": press}]})).await;
    }

    async fn complaints(&self) -> Vec<String> {
        let said = self.command("se/log", json!({"type": "browser"})).await;
        said.as_array().unwrap().iter().map(|line| line["message"].to_string()).collect()
    }

    async fn picture(&self, file: &Path) {
        use base64::Engine as _;
        let path = format!("/session/{}/screenshot", self.session);
        let picture = self.ask("GET", &path, &Value::Null).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }

    async fn stop(mut self) {
        self.ask("DELETE", &format!("/session/{}", self.session), &json!({})).await;
        self.driver.kill().await.unwrap();
    }
}

const ROWS: &str =
    "[...document.querySelectorAll('#functions tr')].map(r => [...r.cells].map(c => c.textContent))";

#[tokio::test]
async fn the_page_shows_a_fleet_at_work() {
    let Some(browser) = Browser::start().await else { return };
    let up = Up::start().await;
    browser.open(&up.page).await;
    // What is there without a call.
    let runners = browser
        .once(
            "document.querySelectorAll('#runners .runner').length === 1",
            "document.querySelector('#runners').textContent",
        )
        .await;
    assert!(runners.as_str().unwrap().contains("ready"), "{runners}");
    let names = browser
        .once("document.querySelectorAll('#functions tr').length === 4", &format!("{ROWS}.map(r => r[0])"))
        .await;
    assert_eq!(names, json!(["demo/fails", "demo/header", "demo/hello", "demo/slow"]));
    assert_eq!(browser.value("document.title").await, "Stoker balancer");
    // Calls come, and are seen: their rate, their times, and that function on top.
    let mut load = up.command(&["bench", "demo/hello", "-c", "2", "-d", "60", "--size", "8"]);
    let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let busy = format!(
        "(r => r[0] === 'demo/hello' && parseFloat(r[1]) > 1 && r[3].endsWith('s'))({ROWS}[0] || [])"
    );
    let seen = browser.once(&busy, &format!("{ROWS}[0]")).await;
    let rate = seen[1].clone();
    let other = format!("{ROWS}[0][1] !== {rate}");
    browser.once(&other, "true").await;
    let failed = up.run(&["call", "demo/fails"]).await;
    assert_eq!(failed.status.code(), Some(1));
    browser.once(&format!("{ROWS}.some(r => r[0] === 'demo/fails' && r[4] === '100 %')"), "true").await;
    assert_eq!(browser.value("document.getElementById('status').textContent").await, "live");
    if let Some(directory) = std::env::var_os("STOKER_TEST_PICTURES") {
        browser.command("window/rect", json!({"width": 1000, "height": 760})).await;
        browser.picture(&Path::new(&directory).join("page.png")).await;
    }
    // By keys alone: to the head of the first column, which sorts by name; then the filter.
    browser.value("document.querySelector('th button').focus()").await;
    browser.key("\u{e007}").await;
    let sorted = "document.querySelector('th').getAttribute('aria-sort')";
    assert_eq!(browser.value(sorted).await, "ascending");
    assert_eq!(browser.value(&format!("{ROWS}[0][0]")).await, "demo/fails");
    browser.value("document.getElementById('filter').focus()").await;
    browser.key("w").await;
    assert_eq!(browser.value(&format!("{ROWS}.map(r => r[0])")).await, json!(["demo/slow"]));
    // In the dark, and on something narrow, which is not wider than itself.
    let ground = "getComputedStyle(document.body).backgroundColor";
    let bright = browser.value(ground).await;
    let dark = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    browser.command("goog/cdp/execute", json!({"cmd": "Emulation.setEmulatedMedia", "params": dark})).await;
    assert_ne!(browser.value(ground).await, bright);
    let narrow = json!({"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": true});
    browser
        .command("goog/cdp/execute", json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": narrow}))
        .await;
    let width = browser.value("[document.documentElement.scrollWidth, innerWidth]").await;
    assert_eq!(width[0], width[1]);
    // Nobody else was asked for anything, and nothing was amiss.
    let asked = browser.value("performance.getEntriesByType('resource').map(e => e.name)").await;
    let ours = |name: &Value| {
        name.as_str().unwrap().starts_with(&up.page) || name.as_str().unwrap().starts_with("data:")
    };
    assert!(asked.as_array().unwrap().iter().all(ours), "{asked}");
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    load.kill().await.unwrap();
    // The fleet goes, and the page does not look as if it were there.
    up.stop().await;
    let said = browser
        .once(
            "document.getElementById('status').textContent.startsWith('no news')",
            "document.getElementById('status').textContent",
        )
        .await;
    assert!(said.as_str().unwrap().starts_with("no news for"), "{said}");
    assert_eq!(browser.value("document.body.classList.contains('late')").await, true);
    browser.stop().await;
}

#[tokio::test]
async fn nothing_that_the_page_is_told_becomes_part_of_it() {
    let Some(browser) = Browser::start().await else { return };
    let up = Up::start().await;
    browser.open(&up.page).await;
    browser.once("document.querySelectorAll('#runners .runner').length === 1", "true").await;
    // The page's own state, with a name in every place that would like to be more than that.
    let evil = "<img src=x onerror=\\\"window.evil = 1\\\"><script>window.evil = 1</script>";
    let told = format!(
        "(() => {{
            const state = JSON.parse(JSON.stringify(seen[seen.length - 1])), evil = \"{evil}\";
            state.balancer.name = state.balancer.version = evil;
            for (const r of state.runners) r.name = r.state = r.reason = r.zone = evil;
            for (const f of state.functions) f.name = f.format = evil;
            hear(state);
            return [document.querySelectorAll('main img, main script').length, document.querySelector('#runners h3').textContent,
                {ROWS}[0][0], window.evil === undefined];
        }})()"
    );
    let written = evil.replace('\\', "");
    assert_eq!(browser.value(&told).await, json!([0, written, written, true]));
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    // And were it put in as markup all the same, the page's policy would let nothing of it run.
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.evil = 1\">')").await;
    browser.value("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.evil = 1'}))").await;
    assert_eq!(
        browser.value("fetch('http://127.0.0.1:1/').catch(() => 0), window.evil === undefined").await,
        true
    );
    let complaints = browser.complaints().await.join("\n");
    assert!(complaints.contains("Content Security Policy"), "{complaints}");
    up.stop().await;
    browser.stop().await;
}

/// What a browser would fetch or run besides.
#[test]
fn the_page_is_one_file_that_asks_for_no_other() {
    let page = include_str!("../../../lb/src/page/index.html");
    for part in [
        "http://",
        "https://",
        "@import",
        "url(",
        " style=",
        " src=",
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "eval(",
    ] {
        assert!(!page.contains(part), "{part:?}");
    }
    let (scripts, styles) = (page.matches("<script").count(), page.matches("<style").count());
    assert_eq!((scripts, styles), (1, 1), "named by their hashes");
}
