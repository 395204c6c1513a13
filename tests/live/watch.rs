//! `vecsync status --watch`, on a terminal and elsewhere, until somebody presses Ctrl-C.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::process::{signal, wait_for_exit, wait_until};
use crate::support::site::Site;
use crate::support::table::{insert, values};

const SOON: Duration = Duration::from_secs(20);

/// A program whose standard output is read as it comes.
struct Watched {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Watched {
    fn start(mut command: Command) -> Watched {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = Arc::new(Mutex::new(vec![]));
        let (mut output, into) = (child.stdout.take().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Watched { child, said }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        wait_until(what, SOON, || {
            let said = self.said();
            if is_there(&said) { Ok(said) } else { Err(format!("{said:?}")) }
        })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_is_redrawn_on_a_terminal_which_is_left_as_it_was() {
    let mut site = Site::open();
    let program = site.vecsync.command(&["status", "--watch"]);
    // script(1) is a terminal for who has none. Its shell makes room: it would hear of Ctrl-C, too, and has a status of its own.
    let mut terminal = Command::new("script");
    terminal.arg("-qec").arg(format!("exec {} status --watch", program.get_program().display())).arg("/dev/null");
    terminal.env_clear().current_dir(program.get_current_dir().unwrap());
    terminal.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
    let mut watched = Watched::start(terminal);
    let first = watched.wait_for("two frames", |said| said.matches("\x1b[H").count() >= 2);
    assert!(first.starts_with("\x1b[?1049h\x1b[?25l"), "{first:?}");
    for part in
        ["pipeline faq", "capture   streaming", "embed ", "index ", "slot ", "local     healthy", "breaker none"]
    {
        assert!(first.contains(part), "no {part:?} in {first}");
    }
    // A rate, and the position of what was written.
    let before = first.matches("dead letters open: 0").count();
    assert!(before >= 1, "{first}");
    let rows: Vec<String> = (1..=30).map(|id| values(id, "Q", &format!("A {id}"), "c00")).collect();
    site.sql.execute(&insert(&rows));
    watched.wait_for("the rows", |said| {
        let last = said.rsplit("\x1b[H").nth(1).unwrap_or_default();
        last.lines().any(|line| line.starts_with("local ") && line.split_whitespace().any(|word| word == "30"))
    });
    // It goes away, and comes back.
    assert_eq!(site.vecsync.terminate().code, Some(0));
    watched.wait_for("that nobody is there", |said| said.contains("no vecsync answers"));
    site.vecsync.start();
    let frames = watched.said().matches("\x1b[Hvecsync at").count();
    watched.wait_for("another frame", |said| said.matches("\x1b[Hvecsync at").count() > frames);
    // Ctrl-C, typed.
    watched.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    assert_eq!(wait_for_exit(&mut watched.child, SOON).code(), Some(0));
    let all = watched.wait_for("the terminal as it was", |said| said.contains("\x1b[?7h\x1b[?25h\x1b[?1049l"));
    let left = all.rsplit("\x1b[?1049l").next().unwrap();
    assert!(left.contains("pipeline faq") && !left.contains('\x1b'), "{left:?}");
}

#[test]
fn elsewhere_it_is_a_line_each_until_nobody_reads_or_somebody_interrupts() {
    let site = Site::open();
    let mut watched = Watched::start(site.vecsync.command(&["status", "--watch"]));
    let said = watched.wait_for("three lines", |said| said.lines().count() >= 3);
    for line in said.lines().take(3) {
        assert!(line.contains(" healthy capture=[streaming, ") && line.contains("breaker=none"), "{line}");
        assert!(line.contains("local=[healthy, 0 points, 0 records behind, ") && !line.contains('\x1b'), "{line}");
    }
    assert!(said.lines().nth(1).unwrap().contains("0.0/s"), "{said}");
    signal(&watched.child, "INT");
    assert_eq!(wait_for_exit(&mut watched.child, SOON).code(), Some(0));

    let mut short = site.vecsync.command(&["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(short.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(wait_for_exit(&mut short, SOON).code(), Some(0), "{line}");

    let mut nobody = site.vecsync.command(&["status", "--watch"]);
    let nobody = nobody.env("VECSYNC_URL", "http://127.0.0.1:1").output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no vecsync answers"), "{nobody:?}");
    assert_eq!(site.vecsync.run(&["status", "--watch", "--json"]).code, Some(2));
}
