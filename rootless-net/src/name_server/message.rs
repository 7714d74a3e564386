//! Queries in, answers out: what of a datagram is looked at, and how our own answers are made.
//!
//! What comes in, and what goes back by itself:
//!
//! | a message | answer |
//! |---|---|
//! | shorter than a header, or an answer itself | none |
//! | other than a standard query | NOTIMP |
//! | not exactly one question, answers in it, not to be read, longer than [`MAX_QUERY`] | FORMERR |
//! | EDNS other than version 0 | BADVERS |
//! | a zone transfer, a class other than IN | REFUSED |
//!
//! No such answer is longer than its query and an OPT record.

use std::net::IpAddr;

use hickory_proto::op::{
    DEFAULT_MAX_PAYLOAD_LEN, Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode,
    Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

/// Longest query that is looked at. Questions have at most 271 bytes; the rest is room for EDNS.
pub(super) const MAX_QUERY: usize = 4096;
/// What any client takes by UDP (RFC 1035).
const MIN_UDP: u16 = 512;
/// Largest answer by UDP that we make up ourselves, whatever the client would take.
const MAX_OWN_UDP: u16 = 4096;
/// Header of a message.
const HEADER: usize = 12;
/// Of an OPT record without options.
const OPT_LENGTH: u16 = 11;
/// Additional records of a query: OPT and a signature, and some more for the unforeseen.
const MAX_ADDITIONALS: u16 = 4;
/// Containers come back with other addresses, and asking again costs nothing on the way.
const TTL: u32 = 0;

/// A query fit to be answered.
#[derive(Debug)]
pub(super) struct Request {
    metadata: Metadata,
    /// What is asked.
    pub question: Query,
    /// Where the question ends in the message.
    question_end: usize,
    edns: Option<Edns>,
}

/// What came, sorted.
pub(super) enum Received {
    Request(Box<Request>),
    /// Refused with this answer.
    Refused(Vec<u8>),
    /// Not to be answered at all.
    Noise,
}

/// Looks at a message.
pub(super) fn receive(bytes: &[u8]) -> Received {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else {
        return Received::Noise;
    };
    let Header { metadata, counts } = header;
    if metadata.message_type != MessageType::Query {
        return Received::Noise;
    }
    let refuse = |code| Received::Refused(bare_error(&metadata, code));
    if metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let plain = counts.queries == 1
        && counts.answers == 0
        && counts.authorities == 0
        && counts.additionals <= MAX_ADDITIONALS
        && bytes.len() <= MAX_QUERY;
    // The counts come first: decoding reserves memory by them.
    let question = plain.then(|| Query::read(&mut decoder));
    let Some(Ok(question)) = question else {
        return refuse(ResponseCode::FormErr);
    };
    let question_end = decoder.index();
    let count = usize::from(counts.additionals);
    let Ok((_, edns, _)) = Message::read_records(&mut decoder, count, true, OpCode::Query) else {
        return refuse(ResponseCode::FormErr);
    };
    let request = Request {
        metadata,
        question,
        question_end,
        edns,
    };
    let refusal = if request
        .edns
        .as_ref()
        .is_some_and(|edns| edns.version() != 0)
    {
        ResponseCode::BADVERS
    } else if matches!(
        request.question.query_type(),
        RecordType::AXFR | RecordType::IXFR
    ) || request.question.query_class() != DNSClass::IN
    {
        ResponseCode::Refused
    } else {
        return Received::Request(Box::new(request));
    };
    Received::Refused(request.error(refusal))
}

impl Request {
    /// Where the question ends in the message.
    pub(super) fn question_end(&self) -> usize {
        self.question_end
    }

    /// The longest answer its client takes by UDP.
    pub(super) fn udp_limit(&self) -> u16 {
        let offered = self.edns.as_ref().map(Edns::max_payload);
        offered.unwrap_or(MIN_UDP).max(MIN_UDP)
    }

    /// An answer without records.
    pub(super) fn error(&self, code: ResponseCode) -> Vec<u8> {
        self.finish(code, false, &[], u16::MAX)
    }

    /// The name's addresses, or that there are none of the type asked for.
    pub(super) fn addresses(&self, addresses: &[IpAddr], udp: bool) -> Vec<u8> {
        self.answer(
            addresses.iter().map(|address| match address {
                IpAddr::V4(v4) => RData::A(A(*v4)),
                IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
            }),
            udp,
        )
    }

    /// The address's names; such as cannot be a name in the DNS are passed over.
    pub(super) fn names(&self, names: &[String], udp: bool) -> Vec<u8> {
        let names = names.iter().filter_map(|name| {
            let mut name = Name::from_ascii(name).ok()?;
            name.set_fqdn(true);
            Some(RData::PTR(PTR(name)))
        });
        self.answer(names, udp)
    }

    /// The answer of a server, cut down to header and question if it is longer than what the client
    /// takes.
    pub(super) fn fit(&self, mut answer: Vec<u8>, udp: bool) -> Vec<u8> {
        if !udp || answer.len() <= usize::from(self.udp_limit()) {
            return answer;
        }
        // TC, and nothing behind the question, which the answer may not have.
        let end = if answer[5] == 0 {
            HEADER
        } else {
            self.question_end
        };
        answer.truncate(end);
        answer[2] |= 0b10;
        answer[6..HEADER].fill(0);
        answer
    }

    fn answer(&self, data: impl Iterator<Item = RData>, udp: bool) -> Vec<u8> {
        let records: Vec<Record> = data
            .map(|data| Record::from_rdata(self.question.name().clone(), TTL, data))
            .collect();
        let limit = if udp {
            self.udp_limit().min(MAX_OWN_UDP)
        } else {
            u16::MAX
        };
        self.finish(ResponseCode::NoError, true, &records, limit)
    }

    /// As many of the records as fit into `limit` bytes, and TC if there were more: clients that never
    /// come again by TCP can do with some of the addresses.
    fn finish(
        &self,
        code: ResponseCode,
        authoritative: bool,
        records: &[Record],
        limit: u16,
    ) -> Vec<u8> {
        let mut metadata = reply_metadata(&self.metadata);
        metadata.response_code = code;
        metadata.authoritative = authoritative;
        let edns = self.edns.as_ref().map(|theirs| {
            let mut ours = Edns::new();
            ours.set_max_payload(DEFAULT_MAX_PAYLOAD_LEN);
            ours.set_dnssec_ok(theirs.flags().dnssec_ok);
            ours
        });
        let room = limit - edns.as_ref().map_or(0, |_| OPT_LENGTH);
        let fitting = match self.emit(&metadata, records, None, room) {
            Ok((header, _)) => usize::from(header.counts.answers),
            Err(_) => 0,
        };
        metadata.truncation = fitting < records.len();
        match self.emit(&metadata, &records[..fitting], edns.as_ref(), limit) {
            Ok((_, bytes)) => bytes,
            Err(_) => bare_error(&self.metadata, ResponseCode::ServFail),
        }
    }

    fn emit(
        &self,
        metadata: &Metadata,
        records: &[Record],
        edns: Option<&Edns>,
        limit: u16,
    ) -> Result<(Header, Vec<u8>), hickory_proto::ProtoError> {
        let mut bytes = Vec::with_capacity(128);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit);
        let nothing = || std::iter::empty::<&Record>();
        let header = emit_message_parts(
            metadata,
            &mut std::iter::once(&self.question),
            &mut records.iter(),
            &mut nothing(),
            &mut nothing(),
            edns,
            None,
            &mut encoder,
        )?;
        Ok((header, bytes))
    }
}

fn reply_metadata(query: &Metadata) -> Metadata {
    let mut metadata = Metadata::new(query.id, MessageType::Response, query.op_code);
    metadata.recursion_desired = query.recursion_desired;
    metadata.recursion_available = true;
    metadata.checking_disabled = query.checking_disabled;
    metadata
}

/// A header alone.
fn bare_error(query: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut metadata = reply_metadata(query);
    metadata.response_code = code;
    let counts = HeaderCounts {
        queries: 0,
        answers: 0,
        authorities: 0,
        additionals: 0,
    };
    let mut bytes = Vec::with_capacity(HEADER);
    let mut encoder = BinEncoder::new(&mut bytes);
    // A header has no part that could fail to be written.
    let _ = Header { metadata, counts }.emit(&mut encoder);
    bytes
}
