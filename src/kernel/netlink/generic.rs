//! Generic netlink: requests to parts of the kernel that have a name, and a number only while they are
//! there.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::{Conversation, Message, attribute};

/// `GENL_ID_CTRL`: the part that knows the others' numbers.
const CONTROL: u16 = 16;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;

/// A conversation with one part of the kernel.
pub(in crate::kernel) struct Generic {
    conversation: Conversation,
    family: u16,
}

impl Generic {
    /// Opens a socket to the part called `name`, in the namespace of this thread; `None` when this kernel
    /// has no such part. The kernel loads the module that has it, if there is one.
    pub(in crate::kernel) fn open(name: &str) -> io::Result<Option<Generic>> {
        let mut conversation = Conversation::open(NETLINK_GENERIC)?;
        let name = attribute(FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let mut family = None;
        let asked = conversation.ask(CONTROL, 0, &payload(GET_FAMILY, &name), &mut |message| {
            family = message.native_u16(FAMILY_ID);
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(None),
            asked => asked?,
        }
        let family = family.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Generic { conversation, family }))
    }

    /// Sends `command` and passes on each message of the answer, as [`Conversation::ask`] does.
    pub(in crate::kernel) fn ask(
        &mut self,
        command: u8,
        flags: u16,
        attributes: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.conversation.ask(self.family, flags, &payload(command, attributes), each)
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
    fn a_part_is_found_by_its_name_and_answers() {
        let mut control = Generic::open("nlctrl").unwrap().expect("every kernel has it");
        assert_eq!(control.family, CONTROL);
        let mut names = Vec::new();
        let mut each = |message: &Message<'_>| names.extend(message.text(FAMILY_NAME).map(str::to_owned));
        control.ask(GET_FAMILY, NLM_F_DUMP, &[], &mut each).unwrap();
        assert!(names.contains(&"nlctrl".to_owned()), "{names:?}");
    }

    #[test]
    fn a_part_that_this_kernel_has_not_is_none() {
        assert!(Generic::open("CHAINSMITH-NONE").unwrap().is_none());
    }

    #[test]
    fn a_refusal_is_the_kernels_error() {
        let mut control = Generic::open("nlctrl").unwrap().expect("every kernel has it");
        let error = control.ask(200, 0, &[], &mut |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EOPNOTSUPP as i32));
    }
}
