//! A name server of the tests, which behaves as it is told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// How it behaves by UDP; by TCP it always answers in full.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// With its address.
    Answer,
    /// With its address, after this long.
    After(Duration),
    /// With this code.
    Code(ResponseCode),
    /// Not at all.
    Silent,
    /// With TC set.
    Truncated,
    /// With this many records, whatever the client takes.
    Long(usize),
    /// Answers to other questions and with other IDs, from other ports too, before its own.
    Forged,
}

/// What it has been asked.
#[derive(Debug, Clone)]
pub struct Seen {
    pub message: Vec<u8>,
    pub source: SocketAddr,
    pub tcp: bool,
}

pub struct FakeUpstream {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    manner: Arc<Mutex<Manner>>,
    _tasks: JoinSet<()>,
}

impl FakeUpstream {
    /// On 127.0.0.`host`; all of one test share the port of the first (0: any).
    pub async fn start(host: u8, port: u16, manner: Manner) -> Self {
        let ip = Ipv4Addr::new(127, 0, 0, host);
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((ip, port)).await.unwrap();
            let port_taken = udp.local_addr().unwrap().port();
            match TcpListener::bind((ip, port_taken)).await {
                Ok(tcp) => break (udp, tcp),
                Err(error) => assert_eq!(port, 0, "{error}"),
            }
        };
        let address = udp.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let manner = Arc::new(Mutex::new(manner));
        let mut tasks = JoinSet::new();
        tasks.spawn(by_udp(udp, Arc::clone(&manner), Arc::clone(&seen)));
        tasks.spawn(by_tcp(tcp, ip, Arc::clone(&seen)));
        Self {
            address,
            seen,
            manner,
            _tasks: tasks,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn by_udp(socket: UdpSocket, manner: Arc<Mutex<Manner>>, seen: Arc<Mutex<Vec<Seen>>>) {
    let IpAddr::V4(own) = socket.local_addr().unwrap().ip() else {
        unreachable!("bound to IPv4")
    };
    let socket = Arc::new(socket);
    let mut late = JoinSet::new();
    let mut room = vec![0; 65535];
    loop {
        let (length, source) = socket.recv_from(&mut room).await.unwrap();
        let message = room[..length].to_vec();
        seen.lock().unwrap().push(Seen {
            message: message.clone(),
            source,
            tcp: false,
        });
        let manner = *manner.lock().unwrap();
        let answer = match manner {
            Manner::Silent => continue,
            Manner::After(time) => {
                let socket = Arc::clone(&socket);
                late.spawn(async move {
                    tokio::time::sleep(time).await;
                    let answer = answer(&message, &[own]);
                    socket.send_to(&answer, source).await.unwrap();
                });
                continue;
            }
            Manner::Answer => answer(&message, &[own]),
            Manner::Code(code) => with(&message, |m| m.metadata.response_code = code),
            Manner::Truncated => with(&message, |m| m.metadata.truncation = true),
            Manner::Long(count) => answer(&message, &vec![own; count]),
            Manner::Forged => {
                let evil = Ipv4Addr::new(203, 0, 113, 66);
                let mut other_id = answer(&message, &[evil]);
                other_id[0] ^= 1;
                socket.send_to(&other_id, source).await.unwrap();
                let mut other_question = answer(&message, &[evil]);
                other_question[13] ^= 1;
                socket.send_to(&other_question, source).await.unwrap();
                socket.send_to(b"x", source).await.unwrap();
                socket.send_to(&message, source).await.unwrap();
                let stranger = UdpSocket::bind((own, 0)).await.unwrap();
                stranger
                    .send_to(&answer(&message, &[evil]), source)
                    .await
                    .unwrap();
                answer(&message, &[own])
            }
        };
        socket.send_to(&answer, source).await.unwrap();
    }
}

async fn by_tcp(listener: TcpListener, own: Ipv4Addr, seen: Arc<Mutex<Vec<Seen>>>) {
    loop {
        let (mut stream, source) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.unwrap();
        let answer = answer(&message, &[own; 200]);
        seen.lock().unwrap().push(Seen {
            message,
            source,
            tcp: true,
        });
        let length = u16::try_from(answer.len()).unwrap();
        stream.write_u16(length).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }
}

fn with(query: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap().into_response();
    message.metadata.recursion_available = true;
    change(&mut message);
    message.to_vec().unwrap()
}

/// The answer to `query` with these addresses.
pub fn answer(query: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    with(query, |message| {
        let name = message.queries[0].name().clone();
        for address in addresses {
            let data = RData::A(A(*address));
            message.add_answer(Record::from_rdata(name.clone(), 300, data));
        }
    })
}
