//! A way to PostgreSQL that can be closed: a replication stream is held behind a row, new connections are held at the
//! door. What is on the other side then has exactly what came before, for as long as the test wants.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::postgres::{PASSWORD, USER};
use super::site::Site;

/// Frames are read whole; a larger one is no frame of these tests.
const FRAME_BYTES_MAX: usize = 1 << 24;

pub struct Gate {
    pub port: u16,
    rules: Arc<Rules>,
}

#[derive(Default)]
struct Rules {
    /// What the row says behind which a stream is held.
    row: Mutex<Option<String>>,
    /// Connections that may still come in, if not all, and those that wait.
    door: Mutex<(Option<usize>, usize)>,
    changed: Condvar,
}

impl Gate {
    /// Before the server on this port of the loopback. Lets everything through, until told otherwise.
    fn open(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a port");
        let port = listener.local_addr().expect("it is bound").port();
        let rules = Arc::new(Rules::default());
        let shared = Arc::clone(&rules);
        // Ends with the test's process; a connection ends with either side.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let rules = Arc::clone(&shared);
                thread::spawn(move || {
                    rules.enter();
                    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { return };
                    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
                    thread::spawn(move || copy(from_client, to_server));
                    rules.pass(server, client);
                });
            }
        });
        Gate { port, rules }
    }

    /// Between vecsync, which is not started yet, and its server.
    pub fn before(site: &mut Site) -> Self {
        let gate = Self::open(site.postgres.port);
        let url = site.postgres.url(USER, PASSWORD);
        let door = format!(":{}/", gate.port);
        site.vecsync.set("DATABASE_URL", url.replace(&format!(":{}/", site.postgres.port), &door));
        gate
    }

    /// A stream that sends a row with this text sends nothing after it. None: streams are not held any more.
    pub fn hold_behind(&self, text: Option<String>) {
        *self.rules.row.lock().expect("no holder panics") = text;
    }

    /// Only so many more connections come in; the others wait. None: all come in.
    pub fn admit(&self, connections: Option<usize>) {
        self.rules.door.lock().expect("no holder panics").0 = connections;
        self.rules.changed.notify_all();
    }

    /// Connections that wait.
    pub fn waiting(&self) -> usize {
        self.rules.door.lock().expect("no holder panics").1
    }
}

impl Rules {
    fn enter(&self) {
        let mut door = self.door.lock().expect("no holder panics");
        door.1 += 1;
        let mut door = self.changed.wait_while(door, |door| door.0 == Some(0)).expect("no holder panics");
        door.0 = door.0.map(|admitted| admitted - 1);
        door.1 -= 1;
    }

    fn pass(&self, mut server: TcpStream, mut client: TcpStream) {
        let (mut held, mut frame) = (false, vec![]);
        // What is held is lost with the connection, as it is when somebody is killed who had it in the socket's buffer.
        while let Ok(()) = read_frame(&mut server, &mut frame) {
            if !held && client.write_all(&frame).is_err() {
                break;
            }
            // Nothing but rows of a stream comes in frames of this kind and with this first byte.
            if frame[0] == b'd' && frame.get(5) == Some(&b'w') {
                let row = self.row.lock().expect("no holder panics");
                let says = |text: &String| frame.windows(text.len()).any(|part| part == text.as_bytes());
                held |= row.as_ref().is_some_and(says);
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

fn read_frame(server: &mut TcpStream, frame: &mut Vec<u8>) -> std::io::Result<()> {
    frame.resize(5, 0);
    server.read_exact(frame)?;
    let length = frame[1..5].iter().fold(0_usize, |length, &byte| length << 8 | usize::from(byte)) + 1;
    assert!((5..FRAME_BYTES_MAX).contains(&length), "a frame of {length} bytes");
    frame.resize(length, 0);
    server.read_exact(&mut frame[5..])
}
