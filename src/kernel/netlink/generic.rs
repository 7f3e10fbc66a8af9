//! Generic netlink: requests to kernel subsystems that are identified by name, with a number assigned at
//! run time.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::{Message, NetlinkSocket, attribute};

/// `GENL_ID_CTRL`: the subsystem that returns the numbers of the others.
const CONTROL: u16 = 16;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;

/// A socket to one subsystem.
pub(in crate::kernel) struct GenericNetlink {
    conversation: NetlinkSocket,
    family: u16,
}

impl GenericNetlink {
    /// Opens a socket to the subsystem `name`, in the namespace of this thread; `None` when this kernel
    /// lacks it. The kernel loads the module that provides it, if there is one.
    pub(in crate::kernel) fn open(name: &str) -> io::Result<Option<GenericNetlink>> {
        let mut conversation = NetlinkSocket::open(NETLINK_GENERIC)?;
        let name = attribute(FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let mut family = None;
        let replied = conversation.request(CONTROL, 0, &payload(GET_FAMILY, &name), &mut |message| {
            family = message.native_u16(FAMILY_ID);
        });
        match replied {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(None),
            replied => replied?,
        }
        let family = family.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(GenericNetlink { conversation, family }))
    }

    /// Sends `command` and passes each message of the reply to `each`, as [`NetlinkSocket::request`].
    pub(in crate::kernel) fn request(
        &mut self,
        command: u8,
        flags: u16,
        attributes: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.conversation.request(self.family, flags, &payload(command, attributes), each)
    }
}

/// `struct genlmsghdr`: command, version, reserved; and attributes.
fn payload(command: u8, attributes: &[u8]) -> Vec<u8> {
    [&[command, 1, 0, 0], attributes].concat()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_DUMP;

    use super::*;

    #[test]
    fn a_subsystem_is_found_by_name_and_replies() {
        let mut control = GenericNetlink::open("nlctrl").unwrap().expect("part of every kernel");
        assert_eq!(control.family, CONTROL);
        let mut names = Vec::new();
        let mut each = |message: &Message<'_>| names.extend(message.text(FAMILY_NAME).map(str::to_owned));
        control.request(GET_FAMILY, NLM_F_DUMP, &[], &mut each).unwrap();
        assert!(names.contains(&"nlctrl".to_owned()), "{names:?}");
    }

    #[test]
    fn a_missing_subsystem_is_none() {
        assert!(GenericNetlink::open("CHAINSMITH-NONE").unwrap().is_none());
    }

    #[test]
    fn an_error_of_the_kernel_is_returned() {
        let mut control = GenericNetlink::open("nlctrl").unwrap().expect("part of every kernel");
        let error = control.request(200, 0, &[], &mut |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EOPNOTSUPP as i32));
    }
}
