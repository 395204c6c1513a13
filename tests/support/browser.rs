//! A real Chromium without a window, driven over WebDriver (<https://www.w3.org/TR/webdriver2/>) on loopback.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Answer, Http};
use super::process::{free_port, wait_until};

/// What a page may take to show something, on a machine that compiles beside it.
pub const SOON: Duration = Duration::from_secs(20);
/// The key that says that a value is an element (WebDriver, section 12.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys of the keyboard, as WebDriver writes them.
pub const ENTER: &str = "\u{E007}";
pub const ESCAPE: &str = "\u{E00C}";
pub const UP: &str = "\u{E013}";
pub const DOWN: &str = "\u{E015}";

/// One session; its profile is gone with it.
pub struct Browser {
    http: Http,
    session: String,
    driver: Child,
    _profile: TempDir,
}

impl Browser {
    pub fn start() -> Self {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start chromedriver: `make setup` installs it");
        let profile = tempfile::Builder::new().prefix("vecsync-browser-").tempdir().expect("make a folder");
        let mut browser = Browser { http: Http::new(port), session: String::new(), driver, _profile: profile };
        wait_until("chromedriver to be ready", SOON, || match browser.http.get("/status") {
            Ok(answer) if answer.json()["value"]["ready"] == true => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        // Pages of these tests come from loopback; nothing else may be resolved. Root has no sandbox.
        let arguments = json!([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--window-size=1280,900",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            profile,
        ]);
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = browser.http.post("/session", &wanted).expect("ask for a session");
        let session = answer.json()["value"]["sessionId"].as_str().map(str::to_owned);
        browser.session = session.unwrap_or_else(|| panic!("no session: {}", answer.body));
        browser
    }

    /// Opens an address and waits until it is loaded.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.post("url", &json!({ "url": url }));
    }

    /// Runs a function body in the page; its `return` is the answer.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Value {
        self.post("execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until the function body gives what is wanted.
    #[track_caller]
    pub fn expect(&mut self, script: &str, wanted: &Value) {
        wait_until(&format!("{script} to be {wanted}"), SOON, || {
            let seen = self.run(script);
            if seen == *wanted { Ok(()) } else { Err(seen.to_string()) }
        });
    }

    /// Waits until an element, found by a selector of CSS, has this text in it, and gives all of its text.
    #[track_caller]
    pub fn expect_text(&mut self, selector: &str, part: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? null", json!(selector));
        wait_until(&format!("{selector} to say {part:?}"), SOON, || match self.run(&script) {
            Value::String(text) if text.contains(part) => Ok(text),
            other => Err(other.to_string()),
        })
    }

    /// Types into what has the focus, as a keyboard does.
    #[track_caller]
    pub fn press(&mut self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})])
            .collect();
        self.post("actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]}));
    }

    /// Clicks into an element and types.
    #[track_caller]
    pub fn write(&mut self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.post(&format!("element/{element}/clear"), &json!({}));
        self.post(&format!("element/{element}/value"), &json!({ "text": text }));
    }

    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let element = self.find(selector);
        self.post(&format!("element/{element}/click"), &json!({}));
    }

    /// Opens another tab and goes there; gives back where one was.
    #[track_caller]
    pub fn new_tab(&mut self) -> String {
        let before = self.get("window");
        let tab = self.post("window/new", &json!({"type": "tab"}));
        self.turn_to(tab["handle"].as_str().expect("a handle"));
        before.as_str().expect("a handle").to_owned()
    }

    #[track_caller]
    pub fn turn_to(&mut self, handle: &str) {
        self.post("window", &json!({ "handle": handle }));
    }

    /// A screen of this size, as a phone has it or a desktop.
    #[track_caller]
    pub fn screen(&mut self, width: u32, height: u32, is_phone: bool) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// What the person prefers, such as `prefers-color-scheme` and `dark`.
    #[track_caller]
    pub fn prefer(&mut self, preferences: &[(&str, &str)]) {
        let features: Vec<Value> =
            preferences.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    #[track_caller]
    pub fn devtools(&mut self, command: &str, parameters: &Value) -> Value {
        self.post("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// What the page has complained of since it was last asked.
    #[track_caller]
    pub fn complaints(&mut self) -> Vec<String> {
        let entries = self.post("se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().expect("entries").iter();
        entries.map(|entry| format!("{} {}", entry["level"], entry["message"])).collect()
    }

    /// The addresses that were asked for since it was last asked.
    #[track_caller]
    pub fn requests(&mut self) -> Vec<String> {
        let entries = self.post("se/log", &json!({"type": "performance"}));
        let message = |entry: &Value| serde_json::from_str::<Value>(entry["message"].as_str()?).ok();
        let messages = entries.as_array().expect("entries").iter().filter_map(message);
        messages
            .filter(|message| message["message"]["method"] == "Network.requestWillBeSent")
            .filter_map(|message| message["message"]["params"]["request"]["url"].as_str().map(str::to_owned))
            .collect()
    }

    /// A picture of what is on the screen: a PNG, in base64.
    #[track_caller]
    pub fn picture(&mut self) -> String {
        self.get("screenshot").as_str().expect("base64").to_owned()
    }

    #[track_caller]
    fn find(&mut self, selector: &str) -> String {
        let found = self.post("element", &json!({"using": "css selector", "value": selector}));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    #[track_caller]
    fn get(&mut self, command: &str) -> Value {
        let path = format!("/session/{}/{command}", self.session);
        let answer = self.http.get(&path);
        value(&path, answer)
    }

    #[track_caller]
    fn post(&mut self, command: &str, body: &Value) -> Value {
        let path = format!("/session/{}/{command}", self.session);
        let answer = self.http.post(&path, body);
        value(&path, answer)
    }
}

#[track_caller]
fn value(path: &str, answer: std::io::Result<Answer>) -> Value {
    let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()["value"].take()
}

impl Drop for Browser {
    /// Ends the browser; the driver ends with it, or is ended.
    fn drop(&mut self) {
        let _ = self.http.request("DELETE", &format!("/session/{}", self.session), "");
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
