//! `-m bpf --bytecode`: classic BPF over the packet from its IP header on.
//!
//! Source: `net/core/filter.c` and `net/netfilter/xt_bpf.c` of Linux 6.

use std::net::{IpAddr, SocketAddr};

use crate::net::Protocol;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

/// Whether the program `bytecode`, written as iptables takes it (`<n>,<code> <jt> <jf> <k>,...`),
/// accepts the packet; `None` when it is no program.
pub(super) fn accepts(
    bytecode: &str,
    source: SocketAddr,
    destination: SocketAddr,
    protocol: Protocol,
) -> Option<bool> {
    let program = read(bytecode)?;
    let packet = headers(source, destination, protocol);
    run(&program, &packet).map(|result| result != 0)
}

fn read(bytecode: &str) -> Option<Vec<Instruction>> {
    let mut parts = bytecode.split(',').map(str::trim).filter(|part| !part.is_empty());
    let n: usize = parts.next()?.parse().ok()?;
    let program: Vec<Instruction> = parts.map(instruction).collect::<Option<_>>()?;
    (program.len() == n).then_some(program)
}

fn instruction(text: &str) -> Option<Instruction> {
    let mut words = text.split_ascii_whitespace();
    let instruction = Instruction {
        code: words.next()?.parse().ok()?,
        if_true: words.next()?.parse().ok()?,
        if_false: words.next()?.parse().ok()?,
        k: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(instruction)
}

/// IP header and the ports.
fn headers(source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Vec<u8> {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let mut bytes = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, number, 0, 0];
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            bytes
        }
        (from, to) => {
            let v6 = |ip| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut bytes = vec![0x60, 0, 0, 0, 0, 20, number, 64];
            bytes.extend(v6(from));
            bytes.extend(v6(to));
            bytes
        }
    };
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend([0; 16]);
    bytes
}

const LOAD: u16 = 0;
const LOAD_X: u16 = 1;
const STORE: u16 = 2;
const STORE_X: u16 = 3;
const ARITHMETIC: u16 = 4;
const JUMP: u16 = 5;
const RETURN: u16 = 6;

/// What the program returns; `None` when it is not a program the kernel would take. A load behind the
/// packet's end, and a division by zero, return 0 as in the kernel. Jumps only go forward, so it ends.
fn run(program: &[Instruction], packet: &[u8]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    loop {
        let Instruction { code, if_true, if_false, k } = *program.get(at)?;
        at += 1;
        let operand = if code & 0x08 == 0 { k } else { x };
        match code & 0x07 {
            class @ (LOAD | LOAD_X) => {
                let value = match code & 0xe0 {
                    0x00 => k,
                    0x60 => *memory.get(k as usize)?,
                    0x80 => packet.len() as u32,
                    mode => match load(packet, code, mode, x, k)? {
                        Some(value) => value,
                        None => return Some(0),
                    },
                };
                if class == LOAD { a = value } else { x = value }
            }
            STORE => *memory.get_mut(k as usize)? = a,
            STORE_X => *memory.get_mut(k as usize)? = x,
            ARITHMETIC => match arithmetic(code & 0xf0, a, operand)? {
                Some(value) => a = value,
                None => return Some(0),
            },
            JUMP if code & 0xf0 == 0 => at = at.checked_add(k as usize)?,
            JUMP => at += usize::from(if holds(code & 0xf0, a, operand)? { if_true } else { if_false }),
            RETURN => return Some(if code & 0x18 == 0x10 { a } else { k }),
            _ if code & 0xf8 == 0x80 => a = x,
            _ => x = a,
        }
    }
}

/// A load from the packet: `None` for an instruction that there is not, `Some(None)` behind its end.
fn load(packet: &[u8], code: u16, mode: u16, x: u32, k: u32) -> Option<Option<u32>> {
    let length = match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => return None,
    };
    let bytes = |start: usize, n: usize| Some(packet.get(start..start.checked_add(n)?)?.iter());
    let number = |start, n| bytes(start, n).map(|bytes| bytes.fold(0u32, |sum, b| sum << 8 | u32::from(*b)));
    match mode {
        0x20 => Some(number(k as usize, length)),
        0x40 => Some(number(x.wrapping_add(k) as usize, length)),
        // The length of an IP header, in bytes.
        0xa0 => Some(number(k as usize, 1).map(|byte| (byte & 0x0f) * 4)),
        _ => None,
    }
}

fn arithmetic(operation: u16, a: u32, b: u32) -> Option<Option<u32>> {
    Some(match operation {
        0x00 => Some(a.wrapping_add(b)),
        0x10 => Some(a.wrapping_sub(b)),
        0x20 => Some(a.wrapping_mul(b)),
        0x30 => a.checked_div(b),
        0x40 => Some(a | b),
        0x50 => Some(a & b),
        0x60 => Some(a.wrapping_shl(b)),
        0x70 => Some(a.wrapping_shr(b)),
        0x80 => Some(a.wrapping_neg()),
        0x90 => a.checked_rem(b),
        0xa0 => Some(a ^ b),
        _ => return None,
    })
}

fn holds(comparison: u16, a: u32, b: u32) -> Option<bool> {
    match comparison {
        0x10 => Some(a == b),
        0x20 => Some(a > b),
        0x30 => Some(a >= b),
        0x40 => Some(a & b != 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source equals destination, IPv4 (design.md 2.4).
    const SAME_V4: &str = "8,32 0 0 12,2 0 0 0,32 0 0 16,97 0 0 0,28 0 0 0,21 0 1 0,6 0 0 65535,6 0 0 0";
    /// Source equals destination, IPv6.
    const SAME_V6: &str = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
        32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0";

    fn check(bytecode: &str, from: &str, to: &str, expected: Option<bool>) {
        let (source, destination) = (from.parse().unwrap(), to.parse().unwrap());
        assert_eq!(accepts(bytecode, source, destination, Protocol::Udp), expected, "{from} {to}");
    }

    #[test]
    fn the_hairpin_programs_compare_source_and_destination() {
        check(SAME_V4, "10.0.0.1:7", "10.0.0.1:9", Some(true));
        check(SAME_V4, "10.0.0.1:7", "10.0.0.2:9", Some(false));
        check(SAME_V6, "[fd00::1]:7", "[fd00::1]:9", Some(true));
        for other in ["[fd00::2]:7", "[fd01::1]:7", "[fd00:0:1::1]:7", "[fd00::1:0:1]:7"] {
            check(SAME_V6, other, "[fd00::1]:9", Some(false));
        }
    }

    #[test]
    fn protocol_and_ports_are_where_they_belong() {
        check("4,48 0 0 9,21 0 1 17,6 0 0 1,6 0 0 0", "10.0.0.1:7", "10.0.0.2:9", Some(true));
        check("4,40 0 0 22,21 0 1 9,6 0 0 1,6 0 0 0", "10.0.0.1:7", "10.0.0.2:9", Some(true));
        // The same by way of the header's length.
        check("5,177 0 0 0,72 0 0 2,21 0 1 9,6 0 0 1,6 0 0 0", "10.0.0.1:7", "10.0.0.2:9", Some(true));
        check("4,40 0 0 42,21 0 1 9,6 0 0 1,6 0 0 0", "[fd00::1]:7", "[fd00::2]:9", Some(true));
    }

    #[test]
    fn what_is_no_program_is_not_run() {
        for text in ["", "1", "2,6 0 0 1", "1,6 0 0", "1,6 0 0 1 1", "1,99 0 0 0", "1,5 0 0 4294967295", "x"]
        {
            check(text, "10.0.0.1:7", "10.0.0.2:9", None);
        }
        check("1,32 0 0 4294967295", "10.0.0.1:7", "10.0.0.2:9", Some(false));
        check("2,52 0 0 0,6 0 0 1", "10.0.0.1:7", "10.0.0.2:9", Some(false));
    }
}
