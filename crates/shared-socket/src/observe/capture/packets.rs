//! The packets that TCP might have sent for what was captured.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, TcpOptionElement};

/// Bytes of a packet's payload at most: with its headers it fits into IPv4's 65,535.
pub const SEGMENT: usize = 65_483;

/// Flags of a packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags {
    /// The first of its end.
    pub syn: bool,
    /// The last of its end.
    pub fin: bool,
    /// It acknowledges: all but the client's first.
    pub ack: bool,
    /// The end of a message.
    pub push: bool,
}

/// Where a packet goes, and where it stands in its stream.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// From.
    pub from: SocketAddr,
    /// To.
    pub to: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
}

/// An IP packet whose payload has `size` bytes, of which `bytes` are known. Its checksums hold where all are.
pub fn packet(place: Place, flags: Flags, bytes: &[u8], size: usize) -> Vec<u8> {
    let mut tcp = TcpHeader::new(place.from.port(), place.to.port(), place.seq, u16::MAX);
    tcp.acknowledgment_number = if flags.ack { place.ack } else { 0 };
    if flags.syn {
        // windows without end: no packet shall look as if it were more than the other end lets in
        let options = [TcpOptionElement::MaximumSegmentSize(SEGMENT as u16), TcpOptionElement::WindowScale(14)];
        let _ = tcp.set_options(&options); // they fit
    }
    (tcp.syn, tcp.fin, tcp.ack, tcp.psh) = (flags.syn, flags.fin, flags.ack, flags.push);
    let length = u16::try_from(tcp.header_len() + size).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(60 + bytes.len());
    let known = bytes.len() == size;
    match (place.from.ip().to_canonical(), place.to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, from.octets(), to.octets()).unwrap_or_default();
            ip.total_len = length.saturating_add(Ipv4Header::MIN_LEN as u16);
            ip.header_checksum = ip.calc_header_checksum();
            if known {
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, bytes).unwrap_or_default();
            }
            packet.extend_from_slice(&ip.to_bytes());
        }
        (from, to) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: length,
                next_header: IpNumber::TCP,
                hop_limit: 64,
                source: octets(from),
                destination: octets(to),
            };
            if known {
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, bytes).unwrap_or_default();
            }
            packet.extend_from_slice(&ip.to_bytes());
        }
    }
    packet.extend_from_slice(&tcp.to_bytes());
    packet.extend_from_slice(bytes);
    packet
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_packet_is_what_it_says(
            v6 in any::<bool>(), seq in any::<u32>(), ack in any::<u32>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..2000), missing in 0usize..3,
        ) {
            let (from, to): (SocketAddr, SocketAddr) = if v6 {
                ("[fd00::1]:40000".parse().unwrap(), "[fd00::2]:80".parse().unwrap())
            } else {
                ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
            };
            let flags = Flags { ack: true, push: true, ..Flags::default() };
            let made = packet(Place { from, to, seq, ack }, flags, &bytes, bytes.len() + missing);
            let mut whole = made.clone();
            whole.resize(made.len() + missing, 0);
            let seen = SlicedPacket::from_ip(&whole).expect("an IP packet");
            let Some(TransportSlice::Tcp(tcp)) = seen.transport else { panic!("no TCP") };
            prop_assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (seq, ack));
            prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (from.port(), to.port()));
            prop_assert!(tcp.ack() && tcp.psh() && !tcp.syn() && !tcp.fin());
            prop_assert_eq!(tcp.payload().len(), bytes.len() + missing);
            if missing == 0 {
                prop_assert_eq!(tcp.payload(), bytes.as_slice());
                let sum = match seen.net.expect("an IP header") {
                    NetSlice::Ipv4(ip) => tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), &bytes),
                    NetSlice::Ipv6(ip) => tcp.to_header().calc_checksum_ipv6(&ip.header().to_header(), &bytes),
                    _ => unreachable!(),
                };
                prop_assert_eq!(sum.expect("a length"), tcp.checksum());
            }
        }
    }
}
