//! The page at `/`, in a real Chromium: against the whole program, and against a query server with made-up answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use vecsync::config::{ApiKeys, Secret};
use vecsync::index::Arrival;
use vecsync::serve::health::{Component, LOCAL, QDRANT, Report, Status};
use vecsync::serve::status::{State, Store};
use vecsync::serve::{
    Keys, Limits, SearchAnswer, SearchError, SearchRequest, SearchResult, Service, Services, Settings, Tls, run,
};
use vecsync::shutdown::Shutdown;

use crate::support::browser::{Browser, DOWN, ENTER, ESCAPE, SOON, UP};
use crate::support::postgres::quote;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;

/// Markup in a row: were it put in as such, it would run, or ask for an image.
const CANARY: &str = r#"<img src="x" onerror="window.canary = 1"><script>window.canary = 1</script> & co"#;
const TITLES: &str = "return [...document.querySelectorAll('#results h3')].map((title) => title.textContent)";
const FOCUS: &str = "const one = document.activeElement; return one.id || one.textContent";
const CANARY_RAN: &str =
    "return [typeof window.canary, document.querySelectorAll('#results img, #changes img').length]";

#[test]
fn a_person_searches_and_sees_changes_flow_through() {
    let mut site = Site::open();
    let rows = [
        table::values(1, "How do I get a refund?", "Money comes back within two weeks.", "billing"),
        table::values(2, "Where do penguins live?", "On the ice, far in the south.", "animals"),
        table::values(3, CANARY, "An answer about markup canaries.", "<b>bold</b>"),
    ];
    site.sql.execute(&table::insert(&rows));
    wait_until("the rows to be searchable", SOON, || match site.points() {
        Some(3) => Ok(()),
        points => Err(format!("{points:?}")),
    });
    let mut browser = Browser::start();
    let address = format!("http://127.0.0.1:{}/", site.port);
    browser.open(&address);
    browser.write("#query", "money back please");
    browser.expect_text("#results li:first-child h3", "How do I get a refund?");
    let first = browser.expect_text("#results li:first-child", "Money comes back within two weeks.");
    assert!(first.contains("score 0.") && first.contains("from local") && first.contains("id 1"), "{first}");
    let marks =
        browser.run("return [...document.querySelectorAll('#results li:first-child mark')].map((m) => m.textContent)");
    assert_eq!(marks, json!(["Money", "back"]));
    browser.expect_text("#said", "local");
    assert_eq!(browser.run("return location.search"), "?q=money+back+please");
    // What the address says is what is shown, also in a fresh page and for who goes back.
    browser.open(&format!("{address}?q=penguins&filter=category:animals"));
    browser.expect(TITLES, &json!(["Where do penguins live?"]));
    browser.click("#filters button");
    browser.expect("return document.querySelectorAll('#results > li').length", &json!(3));
    browser.run("history.back()");
    browser.expect(TITLES, &json!(["Where do penguins live?"]));
    browser.expect("return document.querySelector('#query').value", &json!("penguins"));

    browser.open(&format!("{address}?q=markup+canaries"));
    browser.expect(&format!("{TITLES}[0]"), &json!(CANARY));
    browser.expect_text("#changes", "onerror");
    assert_eq!(browser.run(CANARY_RAN), json!(["undefined", 0]));

    browser.expect_text("#figures", "3");
    browser.expect_text("#health", "healthy");
    browser.open(&format!("{address}?q=penguins"));
    browser.expect(&format!("{TITLES}[0]"), &json!("Where do penguins live?"));
    browser.expect_text("#changes", "penguins");
    let sql = format!("UPDATE faq_faq SET question = {} WHERE id = 2", quote("Where do penguins swim?"));
    site.sql.execute(&sql);
    let newest = browser.expect_text("#changes li:first-child", "penguins swim");
    assert!(newest.contains("stored id 2") && newest.contains("to local"), "{newest}");
    // What is shown of the search follows, without a key being pressed.
    browser.expect(&format!("{TITLES}[0]"), &json!("Where do penguins swim?"));
    site.sql.execute("DELETE FROM faq_faq WHERE id = 1");
    browser.expect_text("#changes li:first-child", "removed");
    browser.expect_text("#rows", "2");
    // Without a word from the server it says so, and comes back by itself.
    site.vecsync.kill();
    browser.expect_text("#health", "no answer since");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|one| one.contains("ERR_CONNECTION")), "{complaints:#?}");
    site.vecsync.start_ready();
    browser.expect_text("#health", "healthy");
    let elsewhere: Vec<String> = browser.requests().into_iter().filter(|url| !url.starts_with(&address)).collect();
    assert!(elsewhere.iter().all(|url| url.starts_with("data:") || url.starts_with("chrome")), "{elsewhere:#?}");
}

#[test]
fn the_keyboard_is_enough() {
    let server = Server::start(service(titled), Keys::default(), None);
    let mut browser = Browser::start();
    browser.open(&server.address);
    browser.expect(FOCUS, &json!("query"));
    browser.run("document.activeElement.blur()");
    browser.press("/");
    browser.press("kettle");
    browser.expect(TITLES, &json!(["kettle 0", "kettle 1", "kettle 2", "kettle 3", "kettle 4"]));
    assert_eq!(browser.run("return document.querySelector('#query').value"), "kettle");
    browser.press(DOWN);
    browser.press(DOWN);
    assert_eq!(browser.run(FOCUS), "kettle 1");
    browser.press(ENTER);
    let open = "return [...document.querySelectorAll('h3 button')].map((one) => one.ariaExpanded)";
    assert_eq!(browser.run(open), json!(["false", "true", "false", "false", "false"]));
    let fields = browser.expect_text("#results li:nth-child(2) .fields", "answer");
    assert!(fields.contains("all of the answer"), "{fields}");
    browser.press(UP);
    browser.press(UP);
    assert_eq!(browser.run(FOCUS), "query");
    browser.press(DOWN);
    browser.press(ESCAPE);
    assert_eq!(browser.run(FOCUS), "query");
    // Enter searches at once, and is remembered by the browser.
    let before = browser.run("return history.length").as_u64();
    browser.press("s");
    browser.press(ENTER);
    browser.expect(&format!("{TITLES}[0]"), &json!("kettles 0"));
    browser.click("#more");
    browser.expect("return document.querySelectorAll('#results > li').length", &json!(10));
    browser.expect(FOCUS, &json!("kettles 5"));
    assert_eq!(browser.run("return history.length").as_u64(), before);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn of_several_pipelines_one_is_chosen() {
    let named = |name: &'static str| {
        let search = move |request: SearchRequest| {
            titled(SearchRequest { query: format!("{name} {}", request.query), ..request })
        };
        Service { pipeline: name.into(), filters: vec![name.into()], ..service(search) }
    };
    let pipelines = vec![named("faq"), named("products")];
    let (ready, started) = (Arc::new(|| Ok(())), Arc::new(|| Ok(())));
    let services = Services { pipelines, default: 0, ready, started, metrics: Arc::new(String::new) };
    let server = Server::start_all(services, Keys::default(), None);
    let mut browser = Browser::start();
    browser.open(&format!("{}?q=kettle", server.address));
    browser.expect(&format!("{TITLES}[0]"), &json!("faq kettle 0"));
    let options = "return [...document.querySelectorAll('#pipelines option')].map((one) => one.textContent)";
    browser.expect(options, &json!(["faq", "products"]));
    assert_eq!(browser.run("return document.querySelector('label[for=pipelines]').textContent"), "Pipeline");
    // With the keyboard, as in any list.
    browser.run("document.querySelector('#pipelines').focus()");
    browser.press(DOWN);
    browser.expect(&format!("{TITLES}[0]"), &json!("products kettle 0"));
    assert_eq!(browser.run("return location.search"), "?q=kettle&pipeline=products");
    browser.expect_text("#state", "The index now");
    // The address says which, also in a fresh page and for who goes back.
    browser.run("location.reload()");
    browser.expect(&format!("{TITLES}[0]"), &json!("products kettle 0"));
    browser.expect("return document.querySelector('#pipelines').value", &json!("products"));
    browser.run("history.back()");
    browser.expect(&format!("{TITLES}[0]"), &json!("faq kettle 0"));
    browser.expect("return document.querySelector('#pipelines').value", &json!("faq"));
    // One that is not there is said so.
    browser.open(&format!("{}?q=kettle&pipeline=other", server.address));
    browser.expect_text("#said", "no such pipeline");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|one| one.contains("404")), "{complaints:#?}");
}

#[test]
fn an_answer_that_comes_late_is_dropped_and_a_hidden_page_asks_nothing() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let state = || {
        ASKED.fetch_add(1, Ordering::Relaxed);
        State::default()
    };
    let server = Server::start(Service { state: Arc::new(state), ..service(titled) }, Keys::default(), None);
    let mut browser = Browser::start();
    browser.open(&server.address);
    // Answers to `slow` are held back until told; giving up does not reach them.
    browser.run(
        "const real = window.fetch; window.late = [];
         window.fetch = (path, how) => path.startsWith('search?q=slow')
           ? new Promise((answer) => window.late.push(() => real(path, {}).then(answer)))
           : real(path, how);",
    );
    browser.write("#query", "slow");
    browser.expect("return window.late.length", &json!(1));
    browser.write("#query", "quick");
    browser.expect(&format!("{TITLES}[0]"), &json!("quick 0"));
    browser.run("window.late[0]().then(() => setTimeout(() => { window.came = true; }, 50))");
    browser.expect("return window.came === true", &json!(true));
    assert_eq!(browser.run(&format!("{TITLES}[0]")), "quick 0");

    let asked = ASKED.load(Ordering::Relaxed);
    wait_until("to be asked for the state again", SOON, || match ASKED.load(Ordering::Relaxed) - asked {
        0 | 1 => Err("not twice".to_owned()),
        _ => Ok(()),
    });
    let set_hidden = |hidden| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.run(&set_hidden(true));
    // The one that was under way, and then none for longer than two would take.
    let (mut quiet_since, mut seen) = (Instant::now(), ASKED.load(Ordering::Relaxed));
    wait_until("to be asked no more", SOON, || {
        let now = ASKED.load(Ordering::Relaxed);
        if now != seen {
            (quiet_since, seen) = (Instant::now(), now);
        }
        if quiet_since.elapsed() > Duration::from_millis(2500) { Ok(()) } else { Err(format!("{now}")) }
    });
    browser.run(&set_hidden(false));
    wait_until("to be asked again", SOON, || match ASKED.load(Ordering::Relaxed) {
        now if now > seen => Ok(()),
        now => Err(format!("{now}")),
    });
}

#[test]
fn it_fits_a_phone_and_what_a_person_prefers() {
    let server = Server::start(Service { state: Arc::new(full), ..service(titled) }, Keys::default(), None);
    let mut browser = Browser::start();
    browser.screen(320, 640, true);
    for scheme in ["light", "dark"] {
        browser.prefer(&[("prefers-color-scheme", scheme), ("prefers-reduced-motion", "no-preference")]);
        browser.open(&format!("{}?q=kettle&filter=category:{}", server.address, "long".repeat(40)));
        browser.expect(&format!("{TITLES}.length"), &json!(5));
        browser.expect_text("#changes", "a title");
        browser.run("document.querySelectorAll('h3 button').forEach((one) => one.click())");
        assert_eq!(browser.run("return document.documentElement.scrollWidth"), 320, "{scheme}");
        let low = browser.run(CONTRAST);
        assert_eq!(low, json!([]), "{scheme}: too little contrast");
        let paper = browser.run("return getComputedStyle(document.body).backgroundColor");
        let is_dark = paper.as_str().unwrap().trim_start_matches("rgb(").starts_with(['1', '2', '3'])
            && paper != "rgb(252, 251, 248)";
        assert_eq!(is_dark, scheme == "dark", "{paper}");
    }
    let nameless = browser.run(
        "return [...document.querySelectorAll('input, button')].filter((one) =>
           !one.textContent.trim() && !one.ariaLabel && !(one.labels && one.labels.length)).map((one) => one.outerHTML)",
    );
    assert_eq!(nameless, json!([]), "nothing tells what these are");
    let moves = "const one = document.querySelector('#changes li'); one.className = 'new';
                 return getComputedStyle(one).animationName";
    assert_eq!(browser.run(moves), "arrives");
    browser.prefer(&[("prefers-reduced-motion", "reduce")]);
    assert_eq!(browser.run(moves), "none");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Visible texts with a contrast of less than 4.5 to what is behind them (WCAG 2.2, 1.4.3).
const CONTRAST: &str = r"
    const rgb = (text) => text.match(/[\d.]+/g).map(Number);
    const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const behind = (element) => {
      for (let one = element; one; one = one.parentElement) {
        const colour = rgb(getComputedStyle(one).backgroundColor);
        if (colour.length === 3 || colour[3] === 1) return colour;
      }
    };
    const low = [];
    for (const element of document.querySelectorAll('body *')) {
      const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || !element.checkVisibility()) continue;
      const [a, b] = [luminance(rgb(getComputedStyle(element).color)), luminance(behind(element))];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (contrast < 4.5) low.push(`${element.textContent.slice(0, 40)}: ${contrast.toFixed(2)}`);
    }
    return low;";

#[test]
fn with_keys_it_asks_for_one_and_each_tab_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("server.pem"), folder.path().join("server.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let keys = Keys::new(&ApiKeys { commanding: vec![Secret::new("canary-api-key-one".into())], ..ApiKeys::default() });
    let server = Server::start(service(titled), keys, Some(Tls::load(&cert, &key).unwrap()));
    let mut browser = Browser::start();
    browser.open(&format!("{}?q=kettle", server.address));
    browser.expect_text("#keys h2", "wants an API key");
    browser.expect_text("#health", "healthy");
    browser.write("#key", "not-a-known-key-at-all");
    browser.press(ENTER);
    browser.expect_text("#keys-said", "not known here (401)");
    browser.write("#key", "canary-api-key-one");
    browser.press(ENTER);
    browser.expect(&format!("{TITLES}[0]"), &json!("kettle 0"));
    browser.expect("return document.querySelector('#keys').hidden", &json!(true));
    browser.open(&format!("{}?q=teapot", server.address));
    browser.expect(&format!("{TITLES}[0]"), &json!("teapot 0"));
    assert!(
        !browser
            .run("return location.href + document.cookie + JSON.stringify(localStorage)")
            .to_string()
            .contains("canary")
    );
    let first = browser.new_tab();
    browser.open(&server.address);
    browser.expect_text("#keys h2", "wants an API key");
    browser.turn_to(&first);
    browser.expect(&format!("{TITLES}[0]"), &json!("teapot 0"));
    let urls = browser.requests();
    assert!(urls.len() > 5 && urls.iter().all(|url| !url.contains("canary")), "{urls:?}");
}

#[test]
fn it_says_what_is_wrong_and_who_does_not_search() {
    let search = async |request: SearchRequest| match request.query.as_str() {
        "none" => Ok(found(vec![])),
        _ => Err(SearchError::Unavailable { reason: "no store: both are away".into(), retry_after_s: 60 }),
    };
    let server = Server::start(
        Service { health: Arc::new(ill), state: Arc::new(full), ..service(search) },
        Keys::default(),
        None,
    );
    let mut browser = Browser::start();
    browser.open(&format!("{}?q=anything", server.address));
    browser.expect_text("#said", "no store: both are away. Trying again.");
    browser.expect_text("#faults", "source: the slot is gone");
    browser.expect_text("#health", "degraded");
    browser.expect_text("#load", "1,000 of about 2,000");
    let stores = browser.expect_text("#stores tbody", "qdrant");
    assert!(stores.contains("1,391") && stores.contains("local"), "{stores}");
    let change = browser.expect_text("#changes li:first-child", "a title");
    assert!(change.contains("9 ms to local, 1.2 s to qdrant"), "{change}");
    browser.write("#query", "none");
    browser.expect_text("#said", "Nothing found");
    let server =
        Server::start(Service { search: None, health: Arc::new(idle), ..service(titled) }, Keys::default(), None);
    browser.open(&server.address);
    browser.expect_text("#elsewhere", "answers no searches");
    browser.expect("return document.querySelector('#search').hidden", &json!(true));
    browser.expect_text("#state", "The index now");
}

/// Makes the pictures of the documentation from the real FAQ text: `make pictures`.
#[test]
#[ignore = "writes docs/*.png: `make pictures`"]
fn pictures() {
    let site = Site::open();
    let rows = table::faq();
    site.sql.execute(&table::insert(&rows));
    let mut browser = Browser::start();
    browser.screen(1180, 780, false);
    browser.open(&format!("http://127.0.0.1:{}/?q=how+do+I+make+my+program+faster", site.port));
    wait_until("all rows", 6 * SOON, || match browser.run("return document.querySelector('#rows').textContent") {
        Value::String(count) if count == rows.len().to_string() => Ok(()),
        other => Err(other.to_string()),
    });
    for id in [21, 180, 7, 112, 64, 203, 35, 150, 88, 129] {
        site.sql.execute(&format!("UPDATE faq_faq SET updated_at = now() WHERE id = {id}"));
        browser.expect_text("#changes li:first-child", &format!("id {id}"));
    }
    browser.prefer(&[("prefers-reduced-motion", "reduce")]);
    browser.run("location.reload()");
    browser.expect(&format!("{TITLES}.length"), &json!(5));
    browser.expect_text("#changes", "id 129");
    keep(&mut browser, "page-desktop.png");
    browser.prefer(&[("prefers-color-scheme", "dark")]);
    browser.screen(390, 844, true);
    keep(&mut browser, "page-phone.png");
}

fn keep(browser: &mut Browser, name: &str) {
    let picture = base64::engine::general_purpose::STANDARD.decode(browser.picture()).unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::write(path, picture).unwrap();
}

/// A query server in this process, with made-up answers.
struct Server {
    address: String,
    shutdown: Shutdown,
    _runtime: Runtime,
}

impl Server {
    fn start(service: Service, keys: Keys, tls: Option<Tls>) -> Self {
        Self::start_all(Services::one(service, Arc::new(String::new)), keys, tls)
    }

    fn start_all(services: Services, keys: Keys, tls: Option<Tls>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}/", listener.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let settings = Settings { keys, tls, search_deadline: Duration::from_secs(5), limits: Limits::default() };
        runtime.spawn(run(listener, services, settings, shutdown.clone()));
        Server { address, shutdown, _runtime: runtime }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.raise();
    }
}

fn service<F>(search: impl Fn(SearchRequest) -> F + Send + Sync + 'static) -> Service
where
    F: Future<Output = Result<SearchAnswer, SearchError>> + Send + 'static,
{
    Service {
        pipeline: "faq".into(),
        search: Some(Arc::new(move |request| Box::pin(search(request)))),
        filters: vec!["category".into()],
        health: Arc::new(|| Report {
            components: vec![Component::new(LOCAL, Status::Healthy)],
            ready: Ok(()),
            serves: true,
            is_whole: true,
        }),
        state: Arc::new(State::default),
        control: None,
    }
}

fn found(results: Vec<SearchResult>) -> SearchAnswer {
    SearchAnswer { results, served_by: LOCAL, degraded: false, staleness_ms: Some(3) }
}

/// As many as are wanted, each named after the query.
async fn titled(request: SearchRequest) -> Result<SearchAnswer, SearchError> {
    let result = |place: usize| {
        let payload = json!({"question": format!("{} {place}", request.query), "answer": "all of the answer",
            "category": "a category", "address": "without-any-place-to-break".repeat(8)});
        let payload = payload.as_object().cloned().unwrap();
        SearchResult { id: json!(place), score: 0.5, passage: format!("About a {}.", request.query), payload }
    };
    Ok(found((0..request.limit).map(result).collect()))
}

fn full() -> State {
    let store =
        |name, rows, points| Store { name, rows, points, staleness_ms: Some(61_000), lag_records: Some(12_345) };
    let change = |id| Arrival {
        op: if id == 3 { "delete" } else { "upsert" },
        id: Some(json!({"shop": "a".repeat(60), "id": id})),
        title: (id != 3).then(|| format!("a title {}", "x".repeat(110))),
        commit_ts_ms: Some(1_767_361_545_078),
        reached: [(LOCAL, 9), (QDRANT, 1234)].into(),
    };
    State {
        served_by: Some(QDRANT),
        title_field: Some("question".into()),
        stores: vec![store(QDRANT, None, Some(1_391)), store(LOCAL, Some(1_266), Some(1_391))],
        changes: (0..20).map(change).collect(),
        ..State::default()
    }
}

fn ill() -> Report {
    let mut source = Component { error: Some("the slot is gone".into()), ..Component::new("source", Status::Degraded) };
    source.details.insert("snapshot_rows_expected".into(), json!(2000));
    let mut local = Component::new(LOCAL, Status::Healthy);
    local.details.insert("rows".into(), json!(1000));
    local.details.insert("loaded".into(), json!(false));
    Report { components: vec![source, local], ready: Ok(()), serves: true, is_whole: true }
}

fn idle() -> Report {
    Report { components: vec![Component::new("source", Status::Healthy)], ready: Ok(()), serves: false, is_whole: true }
}
