//! A pcapng file: an interface for each workload, the messages as the packets that TCP might have sent.
//!
//! Sequence numbers are those that the connection was born with, counted on by what its ends have sent since it was paired, so
//! that Wireshark follows the stream. A connection that is seen from its first byte begins with a handshake, one that is seen to
//! end has FINs. All of it is made up but the bytes, the times and the order.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use datapath::Role;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use super::packets::{Flags, Place, SEGMENT, packet};
use super::{Captured, Party, What};

const NANOSECONDS: u8 = 9;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes a capture.
pub struct Writer<W: Write> {
    file: PcapNgWriter<W>,
    /// What is added to CLOCK_MONOTONIC, to count from 1970.
    offset_ns: i64,
    snaplen: u32,
    /// By the workload's name: its number, and the messages that it sent.
    interfaces: HashMap<String, (u32, u64)>,
}

fn wrote(result: Result<usize, PcapError>) -> std::io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(PcapError::IoError(e)) => Err(e),
        Err(e) => Err(std::io::Error::other(e)),
    }
}

impl<W: Write> Writer<W> {
    /// Begins a file. `filter` is what was asked for, `snaplen` the bytes of a message that are kept.
    pub fn new(out: W, offset_ns: i64, filter: &str, snaplen: u32) -> std::io::Result<Self> {
        let mut options = vec![
            SectionHeaderOption::OS(Cow::Borrowed("Linux")),
            SectionHeaderOption::UserApplication(Cow::Borrowed(concat!("shared-socket ", env!("CARGO_PKG_VERSION")))),
        ];
        if !filter.is_empty() {
            options.push(SectionHeaderOption::Comment(Cow::Owned(format!("filter: {filter}"))));
        }
        // big-endian: the crate writes the time of statistics low half last, which is right there only
        let section = SectionHeaderBlock { endianness: Endianness::Big, options, ..SectionHeaderBlock::default() };
        let file = PcapNgWriter::with_section_header(out, section).map_err(std::io::Error::other)?;
        Ok(Self { file, offset_ns, snaplen, interfaces: HashMap::new() })
    }

    fn time(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add_signed(self.offset_ns)
    }

    fn interface(&mut self, party: &Party) -> std::io::Result<u32> {
        let name = &party.workload.name;
        if let Some((number, _)) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let number = self.interfaces.len() as u32;
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfDescription(Cow::Borrowed("messages of this workload's sockets")),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        wrote(self.file.write_pcapng_block(block))?;
        self.interfaces.insert(name.clone(), (number, 0));
        Ok(number)
    }

    /// Writes what happened.
    pub fn write(&mut self, c: &Captured) -> std::io::Result<()> {
        let [own, other] = c.offsets;
        if c.first && own == 0 && other == 0 && matches!(c.what, What::Data { .. }) {
            self.handshake(c)?;
        }
        match &c.what {
            What::Data { bytes, size, cut, reason } => {
                let way = match reason {
                    Some("fast") => "fast path".to_owned(),
                    Some(reason) => format!("TCP path: {reason}"),
                    None => "path not known".to_owned(),
                };
                let lost = if *cut { "; some of its bytes are lost" } else { "" };
                let mut comment = Some(format!("{}, {way}{lost}", self.names(c)));
                let keep = (self.snaplen as usize).min(bytes.len());
                let mut at = 0;
                loop {
                    let length = SEGMENT.min(*size as usize - at);
                    let known = &bytes[at.min(keep)..(at + length).min(keep)];
                    let flags = Flags { ack: true, push: at + length == *size as usize, ..Flags::default() };
                    self.packet(c, c.from, flags, own + at as u64, other, known, length, comment.take())?;
                    at += length;
                    if at >= *size as usize {
                        break;
                    }
                }
                if let Some((_, count)) = self.interfaces.get_mut(&c.ends().0.workload.name) {
                    *count += 1;
                }
                Ok(())
            }
            What::Left(reason) => {
                let comment = format!(
                    "{}: this end is plain TCP from here on ({reason}); what it sends is not seen here, but by tcpdump",
                    self.names(c)
                );
                self.packet(c, c.from, Flags { ack: true, ..Flags::default() }, own, other, &[], 0, Some(comment))
            }
            What::Closed => {
                let fin = Flags { fin: true, ack: true, ..Flags::default() };
                let reverse = if c.from == Role::Client { Role::Server } else { Role::Client };
                self.packet(c, c.from, fin, own, other, &[], 0, Some(format!("{}: closed", self.names(c))))?;
                self.packet(c, reverse, fin, other, own + 1, &[], 0, None)
            }
        }
    }

    fn names(&self, c: &Captured) -> String {
        let (from, to) = c.ends();
        format!("{} -> {}", from.workload, to.workload)
    }

    fn handshake(&mut self, c: &Captured) -> std::io::Result<()> {
        let comment = match c.service {
            Some(service) => format!("handshake, made up; the client connected to {service}"),
            None => "handshake, made up".to_owned(),
        };
        let (syn, ack) = (Flags { syn: true, ..Flags::default() }, Flags { ack: true, ..Flags::default() });
        // a SYN stands one before the first byte
        self.packet(c, Role::Client, syn, u64::MAX, 0, &[], 0, Some(comment))?;
        self.packet(c, Role::Server, Flags { ack: true, ..syn }, u64::MAX, 0, &[], 0, None)?;
        self.packet(c, Role::Client, ack, 0, 0, &[], 0, None)
    }

    /// `seq` and `ack` count from the first byte of their end.
    #[allow(clippy::too_many_arguments)]
    fn packet(
        &mut self,
        c: &Captured,
        from: Role,
        flags: Flags,
        seq: u64,
        ack: u64,
        bytes: &[u8],
        size: usize,
        comment: Option<String>,
    ) -> std::io::Result<()> {
        let (own, other, isn, peer_isn) = match from {
            Role::Client => (&c.client, &c.server, c.connection.0, c.connection.1),
            Role::Server => (&c.server, &c.client, c.connection.1, c.connection.0),
        };
        let number = |isn: u32, at: u64| isn.wrapping_add(1).wrapping_add(at as u32);
        let place = Place { from: own.address, to: other.address, seq: number(isn, seq), ack: number(peer_isn, ack) };
        let data = packet(place, flags, bytes, size);
        let mut options = vec![EnhancedPacketOption::Flags(if from == c.from { OUTBOUND } else { INBOUND })];
        options.extend(comment.map(|text| EnhancedPacketOption::Comment(Cow::Owned(text))));
        let block = EnhancedPacketBlock {
            interface_id: self.interface(c.ends().0)?,
            timestamp: Duration::from_nanos(self.time(c.time_ns)),
            original_len: (data.len() + size - bytes.len()) as u32,
            data: Cow::Owned(data),
            options,
        };
        wrote(self.file.write_pcapng_block(block))
    }

    /// What has been written goes on its way: whoever reads from a pipe sees it.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.file.get_mut().flush()
    }

    /// Ends the file. `lost` are pieces of messages for which there was no room; they belong to no interface, so each has them.
    pub fn finish(mut self, now_ns: u64, lost: u64) -> std::io::Result<()> {
        let time = self.time(now_ns);
        let mut numbers: Vec<(u32, u64)> = self.interfaces.values().copied().collect();
        numbers.sort_unstable();
        for (number, received) in numbers {
            let block = InterfaceStatisticsBlock {
                interface_id: number,
                timestamp: time,
                options: vec![
                    InterfaceStatisticsOption::Comment(Cow::Borrowed(
                        "messages; dropped: pieces of messages, of all workloads together",
                    )),
                    InterfaceStatisticsOption::IsbIfRecv(received),
                    InterfaceStatisticsOption::IsbIfDrop(lost),
                ],
            };
            wrote(self.file.write_pcapng_block(block))?;
        }
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;
    use crate::observe::capture::Recorder;
    use crate::observe::capture::tests::{Empty, tapped};
    use crate::observe::filter::Filter;

    #[test]
    fn a_file_has_streams_that_can_be_followed() {
        let mut recorder = Recorder::new(Filter::ALL, 1);
        let large = vec![b'x'; SEGMENT + 10];
        let now = Instant::now();
        recorder.take(tapped(Role::Client, 0, 0, b"GET / HTTP/1.1\r\n\r\n"), now);
        recorder.take(tapped(Role::Server, 0, 0, &large), now);
        recorder.take(tapped(Role::Client, 1, 18, b"more"), now);
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, 5_000_000_000, "port 80", u32::MAX).expect("a file");
        while let Some(captured) = recorder.next(now + Duration::from_secs(1), &mut Empty, |_, _| ()) {
            writer.write(&captured).expect("written");
        }
        writer.finish(9_000, 3).expect("finished");

        let mut reader = PcapNgReader::new(bytes.as_slice()).expect("pcapng");
        let (mut packets, mut names, mut drops) = (Vec::new(), Vec::new(), 0);
        while let Some(block) = reader.next_block() {
            match block.expect("a block") {
                Block::EnhancedPacket(p) => packets.push(p.into_owned()),
                Block::InterfaceDescription(i) => names.push(format!("{:?}", i.options[0])),
                Block::InterfaceStatistics(s) => {
                    drops += u32::from(s.options.contains(&InterfaceStatisticsOption::IsbIfDrop(3)));
                }
                _ => {}
            }
        }
        assert_eq!(names.len(), 2);
        assert_eq!(drops, 2);
        let seen: Vec<_> = packets
            .iter()
            .map(|p| {
                let sliced = etherparse::SlicedPacket::from_ip(&p.data).expect("a packet");
                let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
                (tcp.source_port(), tcp.sequence_number(), tcp.acknowledgment_number(), tcp.payload().len(), tcp.syn())
            })
            .collect();
        let segment = SEGMENT as u32;
        assert_eq!(
            seen,
            [
                (40_000, 100, 0, 0, true),
                (80, 200, 101, 0, true),
                (40_000, 101, 201, 0, false),
                (40_000, 101, 201, 18, false),
                (80, 201, 119, SEGMENT, false),
                (80, 201 + segment, 119, 10, false),
                (40_000, 119, 201 + segment + 10, 4, false),
            ]
        );
        assert_eq!(packets[0].timestamp, Duration::from_nanos(5_000_001_000));
    }
}
