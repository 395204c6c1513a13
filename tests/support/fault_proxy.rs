//! A TCP proxy that does harm while it runs: late, in single bytes, not at all, cut off, or with bytes of its own.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// One read of a pump.
const READ_BYTES: usize = 16 * 1024;
/// What a pump holds back at most while it delays.
const HELD_BYTES: usize = 4 << 20;

/// What becomes of the bytes that pass. Connections that are open already are treated so from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Pass,
    /// They pass, each read so much later.
    Delay(Duration),
    /// They pass in writes of one byte.
    Slice,
    /// They are taken and go nowhere, in both directions, and nobody hangs up: a peer that is gone without a word.
    Swallow,
}

/// Which connections: those that asked for replication in their startup packet, all others, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Replication,
    Sql,
    All,
}

impl Which {
    fn names(self, replication: bool) -> bool {
        match self {
            Which::All => true,
            Which::Replication => replication,
            Which::Sql => !replication,
        }
    }
}

/// What becomes of a connection when the server has said so many bytes on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// Both sides get a reset after these bytes.
    Reset(usize),
    /// The byte after these is another, and all goes on.
    Garble(usize),
}

/// A proxy before a server of the loopback. Dropping it ends all connections.
pub struct FaultProxy {
    pub port: u16,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    replication: watch::Sender<Mode>,
    sql: watch::Sender<Mode>,
    /// New connections are closed at once.
    closed: watch::Sender<bool>,
    /// Of connections that are opened from now on.
    fuse: watch::Sender<Option<Fuse>>,
    open: Mutex<Vec<Open>>,
}

/// A connection under way.
struct Open {
    replication: bool,
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    /// Both sides get a reset.
    Reset,
    /// These bytes go to the client, between two of the server's writes.
    Inject(Vec<u8>),
    /// Neither side is heard from now on, whatever the mode becomes.
    Abandon,
}

impl FaultProxy {
    pub fn start(to: u16) -> FaultProxy {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.set_nonblocking(true).expect("not blocking");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            replication: watch::channel(Mode::Pass).0,
            sql: watch::channel(Mode::Pass).0,
            closed: watch::channel(false).0,
            fuse: watch::channel(None).0,
            open: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    () = accept(listener, theirs, SocketAddr::from((Ipv4Addr::LOCALHOST, to))) => {}
                    _ = stopped => {}
                }
            });
        });
        FaultProxy { port, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// What becomes of bytes from now on.
    pub fn set(&self, which: Which, mode: Mode) {
        if which.names(true) {
            self.shared.replication.send_replace(mode);
        }
        if which.names(false) {
            self.shared.sql.send_replace(mode);
        }
    }

    /// New connections are closed at once, or let through again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.closed.send_replace(refuse);
    }

    /// What becomes of connections that are opened from now on, once.
    pub fn fuse(&self, fuse: Option<Fuse>) {
        self.shared.fuse.send_replace(fuse);
    }

    /// Cuts connections off with a reset. Says how many there were.
    pub fn reset(&self, which: Which) -> usize {
        self.order(which, || Order::Reset)
    }

    /// Lets connections stand open, with nobody behind them. New ones pass.
    pub fn abandon(&self, which: Which) -> usize {
        self.order(which, || Order::Abandon)
    }

    /// Sends these bytes to the client as if the server had.
    pub fn inject(&self, which: Which, bytes: &[u8]) -> usize {
        self.order(which, || Order::Inject(bytes.to_vec()))
    }

    fn order(&self, which: Which, order: impl Fn() -> Order) -> usize {
        let mut open = self.shared.open.lock().expect("no holder panics");
        // Those that are closed take no orders and are forgotten.
        open.retain(|one| !one.orders.is_closed());
        open.iter().filter(|one| which.names(one.replication) && one.orders.send(order()).is_ok()).count()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, to: SocketAddr) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if *shared.closed.borrow() {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // Either side may end it at any time.
            let _ = carry(client, shared, to).await;
        });
    }
}

async fn carry(mut client: TcpStream, shared: Arc<Shared>, to: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    // What a client says first tells what it wants; one that asks for TLS first is SQL to us.
    let mut first = vec![0; READ_BYTES];
    let read = client.read(&mut first).await?;
    first.truncate(read);
    let replication = first.windows(12).any(|part| part == b"replication\0");
    let (orders, mut ordered) = mpsc::unbounded_channel();
    shared.open.lock().expect("no holder panics").push(Open { replication, orders });
    let mode = if replication { shared.replication.subscribe() } else { shared.sql.subscribe() };
    let (abandon, abandoned) = watch::channel(false);
    let (to_server, more_for_server) = mpsc::unbounded_channel();
    let (to_client, more_for_client) = mpsc::unbounded_channel();
    to_server.send(first).expect("it is held below");
    let reset = {
        let ((client_read, client_write), (server_read, server_write)) = (client.split(), server.split());
        let up = Pump { mode: mode.clone(), abandoned: abandoned.clone(), more: more_for_server, fuse: None };
        let fuse = *shared.fuse.borrow();
        let down = Pump { mode, abandoned, more: more_for_client, fuse };
        let orders = async {
            while let Some(order) = ordered.recv().await {
                match order {
                    Order::Reset => return,
                    Order::Inject(bytes) => drop(to_client.send(bytes)),
                    Order::Abandon => drop(abandon.send_replace(true)),
                }
            }
            std::future::pending().await
        };
        // Whoever ends first ends both.
        tokio::select! {
            ended = up.run(client_read, server_write) => ended?,
            ended = down.run(server_read, client_write) => ended?,
            () = orders => true,
        }
    };
    if reset {
        for socket in [&client, &server] {
            socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

/// One direction of a connection.
struct Pump {
    mode: watch::Receiver<Mode>,
    abandoned: watch::Receiver<bool>,
    /// Bytes that are not read from the source.
    more: mpsc::UnboundedReceiver<Vec<u8>>,
    fuse: Option<Fuse>,
}

impl Pump {
    /// Runs until a side hangs up, which is not passed on while nothing is. Says whether it is to end with a reset.
    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<bool> {
        let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut bytes = vec![0; READ_BYTES];
        let mut open = true;
        while open || !held.is_empty() {
            let due = held.front().map(|(due, _)| *due);
            let held_bytes: usize = held.iter().map(|(_, bytes)| bytes.len()).sum();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let (_, piece) = held.pop_front().expect("one is due");
                    let mode = *self.mode.borrow();
                    match mode {
                        Mode::Slice => for byte in piece { to.write_all(&[byte]).await? },
                        _ => to.write_all(&piece).await?,
                    }
                }
                Some(more) = self.more.recv() => held.push_back((Instant::now(), more)),
                read = from.read(&mut bytes), if open && held_bytes < HELD_BYTES => {
                    // The mode of now, not of when the wait began.
                    let (read, mode) = (read?, *self.mode.borrow());
                    match (read, mode == Mode::Swallow || *self.abandoned.borrow()) {
                        (0, true) => std::future::pending().await,
                        (0, false) => open = false,
                        (_, true) => {}
                        (_, false) => {
                            let late = if let Mode::Delay(late) = mode { late } else { Duration::ZERO };
                            if let Some(left) = self.burn(&mut bytes[..read]) {
                                to.write_all(&bytes[..left]).await?;
                                return Ok(true);
                            }
                            held.push_back((Instant::now() + late, bytes[..read].to_vec()));
                        }
                    }
                }
            }
        }
        Ok(false)
    }

    /// Takes what passes off the fuse; how much of it passes before a reset.
    fn burn(&mut self, passing: &mut [u8]) -> Option<usize> {
        let (Fuse::Reset(left) | Fuse::Garble(left)) = self.fuse.as_mut()?;
        if *left >= passing.len() {
            *left -= passing.len();
            return None;
        }
        let left = *left;
        match self.fuse.take()? {
            Fuse::Reset(_) => Some(left),
            Fuse::Garble(_) => {
                passing[left] ^= 0x55;
                None
            }
        }
    }
}
