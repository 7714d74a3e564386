//! One query to one server, and its answer.
//!
//! Each has a socket of its own, so that the kernel chooses a random port, and a random ID. The socket
//! is connected, so that the kernel takes no datagram from elsewhere and reports at once a server that
//! is not there. An answer counts only if it bears the ID and the question.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};

/// Header of a message.
const HEADER: usize = 12;

/// Runs `f` with room for the longest datagram. One per thread, because there may be a thousand
/// sockets to read from, but only one is read at a time.
pub(super) fn with_datagram_room<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    ROOM.with_borrow_mut(|room| {
        room.resize(usize::from(u16::MAX), 0);
        f(room)
    })
}

/// A query as it goes to servers.
#[derive(Debug)]
pub(super) struct Forwarded {
    /// The client's message; only its ID is another each time.
    pub message: Vec<u8>,
    /// Where the question ends in it.
    pub question_end: usize,
    /// Whether the client came by TCP: then a truncated answer is asked for again by TCP.
    pub tcp: bool,
}

/// The answer of `server`, with the client's ID.
pub(super) async fn exchange(server: SocketAddr, query: &Forwarded) -> io::Result<Vec<u8>> {
    let mut answer = by_udp(server, query).await?;
    if query.tcp && is_truncated(&answer) {
        answer = by_tcp(server, query).await?;
    }
    answer[..2].copy_from_slice(&query.message[..2]);
    Ok(answer)
}

async fn by_udp(server: SocketAddr, query: &Forwarded) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let message = with_random_id(&query.message)?;
    socket.send(&message).await?;
    loop {
        // An ICMP error makes a socket erroneous, but not readable.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            let error = socket.take_error()?;
            return Err(error.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
        }
        let answer = with_datagram_room(|room| match socket.try_recv(room) {
            Ok(length) => {
                let answers = is_answer(&message[..query.question_end], &room[..length]);
                Ok(answers.then(|| room[..length].to_vec()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        })?;
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Forwarded) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let message = with_random_id(&query.message)?;
    stream.write_all(&framed(&message)?).await?;
    let answer = read_framed(&mut stream, usize::from(u16::MAX)).await?;
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    if !is_answer(&message[..query.question_end], &answer) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is not to this question",
        ));
    }
    Ok(answer)
}

/// A message as TCP carries it: behind its length.
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = Vec::with_capacity(2 + message.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    Ok(bytes)
}

/// The next message of a stream, `None` at its end. Memory is taken only for what has come.
pub(super) async fn read_framed(
    stream: &mut TcpStream,
    longest: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > longest {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes where at most {longest} are expected"),
        ));
    }
    let mut message = Vec::new();
    let room = u64::try_from(length).unwrap_or(u64::MAX);
    stream.take(room).read_to_end(&mut message).await?;
    if message.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}

fn with_random_id(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut id = [0u8; 2];
    getrandom(&mut id, GetRandomFlags::empty())?;
    let mut message = message.to_vec();
    message[..2].copy_from_slice(&id);
    Ok(message)
}

fn is_truncated(answer: &[u8]) -> bool {
    answer[2] & 0b10 != 0
}

/// Response code in an answer's header.
pub(super) fn response_code(answer: &[u8]) -> u8 {
    answer[3] & 0xf
}

/// Whether a message answers a query, of which `query` is the header and the question. Servers may
/// change the case of the question, and may leave it out where they did not understand it.
fn is_answer(query: &[u8], message: &[u8]) -> bool {
    if message.len() < HEADER || message[..2] != query[..2] {
        return false;
    }
    // QR set and the same operation.
    if message[2] & 0x80 == 0 || message[2] & 0x78 != query[2] & 0x78 {
        return false;
    }
    if message[4..6] == [0, 0] {
        return !matches!(response_code(message), 0 | 3);
    }
    if message[4..6] != [0, 1] || message.len() < query.len() {
        return false;
    }
    // Lengths of labels are below 64, and so no letters.
    let (name, kind) = query[HEADER..].split_at(query.len() - HEADER - 4);
    let (their_name, their_kind) = message[HEADER..query.len()].split_at(name.len());
    name.eq_ignore_ascii_case(their_name) && kind == their_kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x03WeB\x03com\0\0\x01\0\x01";

    fn answer(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut answer = QUERY.to_vec();
        answer[2] = 0x81;
        change(&mut answer);
        answer
    }

    #[test]
    fn only_an_answer_to_the_question_is_one() {
        assert!(is_answer(QUERY, &answer(|_| {})));
        assert!(is_answer(QUERY, &answer(|a| a.extend(b"records"))));
        assert!(is_answer(QUERY, &answer(|a| a[13] = b'w')));
        let no_question = |code| {
            answer(|a| {
                a[3] = code;
                a[5] = 0;
                a.truncate(12);
            })
        };
        assert!(is_answer(QUERY, &no_question(1)));
        for bad in [
            answer(|a| a[0] = 0),
            answer(|a| a[2] = 1),
            answer(|a| a[2] |= 0x10),
            answer(|a| a[13] = b'x'),
            answer(|a| a[22] = 28),
            answer(|a| a[5] = 2),
            answer(|a| a.truncate(24)),
            answer(|a| a.truncate(11)),
            no_question(0),
            no_question(3),
            QUERY.to_vec(),
            Vec::new(),
        ] {
            assert!(!is_answer(QUERY, &bad), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_noticed_at_once() {
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = free.local_addr().unwrap();
        drop(free);
        let query = Forwarded {
            message: QUERY.to_vec(),
            question_end: QUERY.len(),
            tcp: false,
        };
        // Without the kernel's word it would wait for ever.
        let hangs = std::time::Duration::from_secs(60);
        let result = tokio::time::timeout(hangs, exchange(server, &query)).await;
        let error = result.expect("an error").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut message = answer(|a| a.truncate(12));
            message.extend(bytes);
            is_answer(QUERY, &message);
        }
    }
}
