//! Frames of PostgreSQL's protocol 3.0 that a replication connection needs, to and from bytes. No I/O, no clock.
//!
//! Formats: PostgreSQL's manual, "Message Formats" and "Streaming Replication Protocol".

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::backend::{self, Header, Message};

use super::fault::ServerError;
use crate::event::Lsn;

/// A frame of the stream is never longer: the server builds each in one allocation, which it limits to 1 GiB, and
/// adds a header.
pub const FRAME_BYTES_MAX: usize = (1 << 30) + 1024;

/// Before the server has proved who it is, it gets no more memory than an honest one needs.
pub const LOGIN_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Tag and length, in bytes.
const HEADER_BYTES: usize = 5;

const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// 2000-01-01 in milliseconds since the Unix epoch: where the server's clock begins.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// A frame from the server.
pub enum ServerFrame {
    /// Streaming has begun. `postgres-protocol` does not know this one.
    CopyBoth,
    /// A piece of the stream.
    CopyData(Bytes),
    /// An error; the server goes on, or hangs up.
    Error(ServerError),
    /// Anything else.
    Message(Message),
}

/// A piece of the replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin.
    Data {
        /// Where the WAL of this message starts; 0 where the plugin gives none.
        start: Lsn,
        /// The end of WAL on the server, as far as the sender knows.
        end: Lsn,
        /// The server's clock, milliseconds since the Unix epoch.
        sent_at_ms: i64,
        /// The plugin's message. A slice of the read buffer: keeping it keeps the whole buffer.
        payload: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// The end of WAL on the server: everything below has been sent.
        end: Lsn,
        /// The server's clock, milliseconds since the Unix epoch.
        sent_at_ms: i64,
        /// The server hangs up unless a status comes soon.
        reply_requested: bool,
    },
}

/// Takes the next whole frame off the buffer; `None` when there is none yet.
///
/// A frame above `bytes_max` or a length that cannot be is an error before anything is allocated for it.
pub fn next_frame(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<ServerFrame>, WireError> {
    let Some((tag, total)) = header(buffer, bytes_max)? else { return Ok(None) };
    if buffer.len() < total {
        return Ok(None);
    }
    match tag {
        backend::COPY_DATA_TAG => {
            let mut frame = buffer.split_to(total).freeze();
            frame.advance(HEADER_BYTES);
            Ok(Some(ServerFrame::CopyData(frame)))
        }
        COPY_BOTH_RESPONSE_TAG => {
            buffer.advance(total);
            Ok(Some(ServerFrame::CopyBoth))
        }
        backend::ERROR_RESPONSE_TAG => {
            let frame = buffer.split_to(total).freeze();
            Ok(Some(ServerFrame::Error(server_error(&frame[HEADER_BYTES..])?)))
        }
        _ => {
            // Exactly one frame, so that a fault in the parser cannot reach into the next.
            let mut frame = buffer.split_to(total);
            match Message::parse(&mut frame) {
                Ok(Some(message)) => Ok(Some(ServerFrame::Message(message))),
                Ok(None) => Err(WireError::Malformed { tag, source: io::ErrorKind::UnexpectedEof.into() }),
                Err(source) => Err(WireError::Malformed { tag, source }),
            }
        }
    }
}

/// How many bytes the buffer lacks for its first frame to be whole; 0 when that is not known or none are.
pub fn missing_bytes(buffer: &[u8]) -> usize {
    match header(buffer, FRAME_BYTES_MAX) {
        Ok(Some((_, total))) => total.saturating_sub(buffer.len()),
        Ok(None) | Err(_) => 0,
    }
}

/// The first frame's tag and its whole length in bytes.
fn header(buffer: &[u8], bytes_max: usize) -> Result<Option<(u8, usize)>, WireError> {
    // postgres-protocol reads the length as signed: what it calls too short may be above 2 GiB. Both are refused.
    let Some(header) = Header::parse(buffer).map_err(|_| WireError::Length { tag: buffer[0] })? else {
        return Ok(None);
    };
    let total = usize::try_from(header.len()).map_err(|_| WireError::Length { tag: header.tag() })? + 1;
    if total > bytes_max {
        return Err(WireError::TooLong { tag: header.tag(), bytes: total, bytes_max });
    }
    Ok(Some((header.tag(), total)))
}

/// Reads an ErrorResponse: fields of one type byte and a terminated string, closed by a zero.
fn server_error(mut fields: &[u8]) -> Result<ServerError, WireError> {
    let malformed =
        || WireError::Malformed { tag: backend::ERROR_RESPONSE_TAG, source: io::ErrorKind::UnexpectedEof.into() };
    let mut error = ServerError::default();
    loop {
        let (&kind, rest) = fields.split_first().ok_or_else(malformed)?;
        if kind == 0 {
            return Ok(error);
        }
        let end = rest.iter().position(|&byte| byte == 0).ok_or_else(malformed)?;
        // Before login the server speaks its own encoding.
        let value = String::from_utf8_lossy(&rest[..end]).into_owned();
        fields = &rest[end + 1..];
        match kind {
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            _ => {}
        }
    }
}

/// Reads a CopyData payload of the replication stream: XLogData (`w`) or primary keepalive (`k`).
pub fn replication_frame(mut payload: Bytes) -> Result<Frame, WireError> {
    let bytes = payload.len();
    let tag = *payload.first().ok_or(WireError::EmptyCopyData)?;
    payload.advance(1);
    match tag {
        b'w' if payload.len() >= 24 => Ok(Frame::Data {
            start: Lsn(payload.get_u64()),
            end: Lsn(payload.get_u64()),
            sent_at_ms: unix_ms(payload.get_i64()),
            payload,
        }),
        b'k' if payload.len() == 17 => Ok(Frame::Keepalive {
            end: Lsn(payload.get_u64()),
            sent_at_ms: unix_ms(payload.get_i64()),
            reply_requested: payload.get_u8() != 0,
        }),
        b'w' | b'k' => Err(WireError::CopyDataLength { tag, bytes }),
        _ => Err(WireError::CopyDataTag(tag)),
    }
}

/// Appends a standby status update: written, flushed and applied are all `flushed`.
/// `now_ms` is our clock, milliseconds since the Unix epoch; `reply` asks the server for a keepalive at once.
pub fn standby_status(flushed: Lsn, now_ms: i64, reply: bool, out: &mut BytesMut) {
    const BODY_BYTES: usize = 1 + 3 * 8 + 8 + 1;
    out.reserve(HEADER_BYTES + BODY_BYTES);
    out.put_u8(b'd');
    out.put_i32(4 + BODY_BYTES as i32);
    out.put_u8(b'r');
    for _ in 0..3 {
        out.put_u64(flushed.0);
    }
    out.put_i64(now_ms.saturating_sub(POSTGRES_EPOCH_MS).saturating_mul(1000));
    out.put_u8(u8::from(reply));
}

/// The server's clock, microseconds since 2000-01-01, as milliseconds since the Unix epoch.
pub(super) fn unix_ms(postgres_us: i64) -> i64 {
    postgres_us.div_euclid(1000) + POSTGRES_EPOCH_MS
}

/// Bytes that are not the protocol's.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A length no frame can have.
    #[error("read frame {:?}: its length cannot be", char::from(*tag))]
    Length {
        /// The frame's tag.
        tag: u8,
    },
    /// Longer than anything the server sends.
    #[error("read frame {:?}: {bytes} bytes, more than the {bytes_max} that can be expected", char::from(*tag))]
    TooLong {
        /// The frame's tag.
        tag: u8,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The body does not have its tag's form.
    #[error("read frame {:?}: {source}", char::from(*tag))]
    Malformed {
        /// The frame's tag.
        tag: u8,
        /// What the parser said.
        source: io::Error,
    },
    /// A piece of the stream without content.
    #[error("read replication stream: an empty piece")]
    EmptyCopyData,
    /// A piece of the stream that is neither data nor keepalive.
    #[error("read replication stream: a piece of unknown kind {:?}", char::from(*.0))]
    CopyDataTag(u8),
    /// A piece of the stream too short or too long for its kind.
    #[error("read replication stream: a piece of kind {:?} with {bytes} bytes", char::from(*tag))]
    CopyDataLength {
        /// Its kind.
        tag: u8,
        /// Its length.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(tag: u8, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u8(tag);
        out.put_i32(body.len() as i32 + 4);
        out.put_slice(body);
        out
    }

    fn data_body() -> Vec<u8> {
        let mut body = vec![b'w'];
        body.extend_from_slice(&7u64.to_be_bytes());
        body.extend_from_slice(&9u64.to_be_bytes());
        body.extend_from_slice(&1_500i64.to_be_bytes());
        body.extend_from_slice(b"payload");
        body
    }

    fn frame_of(buffer: &mut BytesMut) -> Frame {
        match next_frame(buffer, FRAME_BYTES_MAX) {
            Ok(Some(ServerFrame::CopyData(payload))) => replication_frame(payload).expect("a frame"),
            _ => panic!("no CopyData"),
        }
    }

    #[test]
    fn stream_pieces_are_read() {
        let mut buffer = framed(b'd', &data_body());
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&11u64.to_be_bytes());
        keepalive.extend_from_slice(&(-1i64).to_be_bytes());
        keepalive.push(1);
        buffer.extend_from_slice(&framed(b'd', &keepalive));
        let wanted = Frame::Data {
            start: Lsn(7),
            end: Lsn(9),
            sent_at_ms: 946_684_800_001,
            payload: Bytes::from_static(b"payload"),
        };
        assert_eq!(frame_of(&mut buffer), wanted);
        let wanted = Frame::Keepalive { end: Lsn(11), sent_at_ms: 946_684_799_999, reply_requested: true };
        assert_eq!(frame_of(&mut buffer), wanted);
        assert!(buffer.is_empty());
    }

    #[test]
    fn copy_both_and_errors_are_recognised() {
        let mut buffer = framed(b'W', &[0, 0, 0]);
        assert!(matches!(next_frame(&mut buffer, FRAME_BYTES_MAX), Ok(Some(ServerFrame::CopyBoth))));
        let mut buffer = framed(b'E', b"SFATAL\0C57P03\0Mthe database system is starting up\0Hwait\0\0");
        let Ok(Some(ServerFrame::Error(error))) = next_frame(&mut buffer, FRAME_BYTES_MAX) else { panic!("no error") };
        assert_eq!((error.code(), error.message.as_str()), ("57P03", "the database system is starting up"));
        assert_eq!((error.hint.as_deref(), error.detail), (Some("wait"), None));
    }

    #[test]
    fn status_has_the_form_of_the_manual() {
        let mut out = BytesMut::new();
        standby_status(Lsn(0x0102), 946_684_800_002, true, &mut out);
        let mut wanted = vec![b'd', 0, 0, 0, 38, b'r'];
        for _ in 0..3 {
            wanted.extend_from_slice(&0x0102u64.to_be_bytes());
        }
        wanted.extend_from_slice(&2_000i64.to_be_bytes());
        wanted.push(1);
        assert_eq!(&out[..], &wanted[..]);
    }

    #[test]
    fn every_truncation_waits_and_leaves_the_buffer_alone() {
        for whole in [framed(b'd', &data_body()), framed(b'W', &[0, 0, 0]), framed(b'E', b"C1\0\0"), framed(b'Z', b"I")]
        {
            for length in 0..whole.len() {
                let mut buffer = BytesMut::from(&whole[..length]);
                assert!(matches!(next_frame(&mut buffer, FRAME_BYTES_MAX), Ok(None)), "{length}");
                assert_eq!(buffer.len(), length);
                if length >= HEADER_BYTES {
                    assert_eq!(missing_bytes(&buffer), whole.len() - length);
                }
            }
        }
    }

    #[test]
    fn truncated_pieces_are_errors() {
        let body = data_body();
        for length in 0..25 {
            assert!(replication_frame(Bytes::copy_from_slice(&body[..length])).is_err(), "{length}");
        }
        for (body, wanted) in [(&b""[..], "empty"), (&b"x1"[..], "unknown kind 'x'"), (&[b'k'; 19][..], "19 bytes")] {
            let error = replication_frame(Bytes::copy_from_slice(body)).expect_err("no frame").to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn impossible_lengths_are_errors_before_memory_is_taken() {
        for length in [0i32, 3, -1, i32::MIN, i32::MAX, (FRAME_BYTES_MAX + 1) as i32] {
            let mut buffer = BytesMut::from(&[b'd'][..]);
            buffer.put_i32(length);
            assert!(next_frame(&mut buffer, FRAME_BYTES_MAX).is_err(), "{length}");
            assert!(buffer.capacity() < 1024);
        }
        let mut buffer = framed(b'S', &vec![b'x'; LOGIN_FRAME_BYTES_MAX]);
        assert!(matches!(next_frame(&mut buffer, LOGIN_FRAME_BYTES_MAX), Err(WireError::TooLong { .. })));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        // A fixed xorshift: the same bytes in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let tags = b"RKSZTDCEWdcNAGHIntvx12";
        for _ in 0..200_000 {
            let length = (random() % 48) as usize;
            let mut body: Vec<u8> = (0..length).map(|_| (random() % 5 * 64) as u8 ^ (random() as u8 & 3)).collect();
            if let Some(kind) = body.first_mut() {
                *kind = b"wkx"[(random() % 3) as usize];
            }
            let tag = tags[(random() % tags.len() as u64) as usize];
            let mut buffer = framed(tag, &body);
            if let Ok(Some(ServerFrame::CopyData(payload))) = next_frame(&mut buffer, FRAME_BYTES_MAX) {
                let _ = replication_frame(payload);
            }
            let mut raw = BytesMut::from(&body[..]);
            let _ = next_frame(&mut raw, LOGIN_FRAME_BYTES_MAX);
        }
    }
}
