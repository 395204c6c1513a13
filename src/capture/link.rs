//! Frames over a socket: one read buffer, one write buffer. Knows no commands.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fault::StreamError;
use super::socket::Socket;
use super::wire::{self, ServerFrame};

/// One read takes up to this much: some hundred small changes for one call of the system.
const READ_BYTES: usize = 128 * 1024;

/// A socket and its buffers.
pub(super) struct Link {
    socket: Socket,
    incoming: BytesMut,
    /// Frames to be sent. Public to its users, who append whole frames.
    pub(super) outgoing: BytesMut,
    frame_bytes_max: usize,
    /// The read buffer has held a frame larger than a read and gives that memory back once it is empty.
    grown: bool,
}

impl Link {
    pub(super) fn new(socket: Socket, frame_bytes_max: usize) -> Self {
        Link { socket, incoming: BytesMut::new(), outgoing: BytesMut::new(), frame_bytes_max, grown: false }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn set_frame_bytes_max(&mut self, bytes: usize) {
        self.frame_bytes_max = bytes;
    }

    /// The next frame that is here already.
    pub(super) fn buffered(&mut self) -> Result<Option<ServerFrame>, StreamError> {
        let frame = wire::next_frame(&mut self.incoming, self.frame_bytes_max)?;
        if self.grown && self.incoming.is_empty() {
            self.incoming = BytesMut::new();
            self.grown = false;
        }
        Ok(frame)
    }

    /// The next frame. Giving the wait up loses nothing.
    pub(super) async fn next(&mut self) -> Result<ServerFrame, StreamError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            let missing = wire::missing_bytes(&self.incoming);
            self.grown |= missing > READ_BYTES;
            // A length is only said: memory grows with what has come, at most to its double.
            self.incoming.reserve(missing.min(self.incoming.len()).max(READ_BYTES));
            let read = self.socket.read_buf(&mut self.incoming).await;
            match read.map_err(|source| StreamError::Network { doing: "read", source })? {
                0 => return Err(StreamError::Closed),
                _ => continue,
            }
        }
    }

    /// Sends all of `outgoing`. Giving the wait up loses nothing: the rest goes out with the next call.
    pub(super) async fn send(&mut self) -> Result<(), StreamError> {
        let write = |source| StreamError::Network { doing: "write", source };
        while !self.outgoing.is_empty() {
            self.socket.write_buf(&mut self.outgoing).await.map_err(write)?;
        }
        self.socket.flush().await.map_err(write)
    }

    /// Closes the socket.
    pub(super) async fn close(mut self) {
        // The peer finds the end either way.
        let _ = self.socket.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        (Link::new(Socket::Unix(ours), wire::FRAME_BYTES_MAX), theirs)
    }

    fn copy_data(bytes: usize) -> Vec<u8> {
        let mut frame = vec![b'd'];
        frame.extend_from_slice(&(bytes as u32 + 4).to_be_bytes());
        frame.resize(5 + bytes, 7);
        frame
    }

    #[tokio::test]
    async fn frames_come_whole_however_they_are_sliced() {
        let (mut link, mut peer) = pair();
        let frame = copy_data(9);
        for length in 0..frame.len() {
            peer.write_all(&frame[..length]).await.expect("written");
            // Given up half way, and asked again.
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), link.next()).await;
            assert!(waiting.is_err(), "{length}");
            peer.write_all(&frame[length..]).await.expect("written");
            assert!(matches!(link.next().await, Ok(ServerFrame::CopyData(body)) if body.len() == 9));
        }
        drop(peer);
        assert!(matches!(link.next().await, Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_large_frame_does_not_keep_its_memory() {
        let (mut link, mut peer) = pair();
        let frame = copy_data(4 << 20);
        let writer = tokio::spawn(async move {
            peer.write_all(&frame).await.expect("written");
            peer.write_all(&copy_data(1)).await.expect("written");
            peer
        });
        assert!(matches!(link.next().await, Ok(ServerFrame::CopyData(body)) if body.len() == 4 << 20));
        assert!(matches!(link.next().await, Ok(ServerFrame::CopyData(body)) if body.len() == 1));
        assert!(link.incoming.capacity() <= 2 * READ_BYTES, "{}", link.incoming.capacity());
        drop(writer.await.expect("a writer"));
    }

    #[tokio::test]
    async fn memory_is_taken_for_what_comes_and_not_for_what_is_said_to_come() {
        let (mut link, mut peer) = pair();
        peer.write_all(&[&[b'd'][..], &(1u32 << 30).to_be_bytes(), &[7; 5_000]].concat()).await.expect("written");
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), link.next()).await;
        assert!(waiting.is_err() && link.incoming.len() == 5_005);
        assert!(link.incoming.capacity() <= 2 * READ_BYTES + 5_005, "{}", link.incoming.capacity());
    }
}
