//! A serial console (16550A) for debugging: what the guest writes goes to a descriptor, nothing comes back.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, Serial as Uart};
use vm_superio::{SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Number of its ports.
pub const PORTS: u64 = 8;

/// The console.
pub struct Serial(Uart<Line, NoEvents, Output>);

/// Its interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Takes everything, and loses what the descriptor does not take: a guest must not be able to stop its vCPU in the host.
struct Output(File);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Its registers in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialRegisters {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
}

impl Default for SerialRegisters {
    fn default() -> SerialRegisters {
        SerialRegisters::of(&SerialState::default())
    }
}

impl SerialRegisters {
    fn of(state: &SerialState) -> SerialRegisters {
        SerialRegisters {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    fn state(self) -> SerialState {
        SerialState {
            baud_divisor_low: self.baud_divisor[0],
            baud_divisor_high: self.baud_divisor[1],
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: Vec::new(),
        }
    }
}

impl Serial {
    /// A console with these registers that writes to `output`, which had better not block, and interrupts by `irq`.
    pub fn new(output: OwnedFd, irq: EventFd, registers: SerialRegisters) -> io::Result<Serial> {
        let uart = Uart::from_state(&registers.state(), Line(irq), NoEvents, Output(File::from(output)));
        uart.map(Serial).map_err(|error| io::Error::other(format!("{error:?}")))
    }

    /// Its registers.
    pub fn registers(&self) -> SerialRegisters {
        SerialRegisters::of(&self.0.state())
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // The only thing that can fail is the interrupt, when one is on its way.
            let _ = self.0.write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn what_is_written_goes_out() {
        let mut file = tempfile::tempfile().unwrap();
        let mut serial =
            Serial::new(file.try_clone().unwrap().into(), EventFd::new(0).unwrap(), SerialRegisters::default())
                .unwrap();
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        serial.write(0, &[1, 2]);
        serial.write(900, &[3]);
        let mut status = [0];
        serial.read(5, &mut status);
        assert_ne!(status[0] & 0x20, 0, "ready for more");
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn registers_are_restored() {
        let null = || File::options().write(true).open("/dev/null").unwrap().into();
        let mut serial = Serial::new(null(), EventFd::new(0).unwrap(), SerialRegisters::default()).unwrap();
        serial.write(7, &[0x5a]);
        serial.write(1, &[2]);
        let registers = serial.registers();
        assert_ne!(registers, SerialRegisters::default());
        let again = Serial::new(null(), EventFd::new(0).unwrap(), registers).unwrap();
        assert_eq!(again.registers(), registers);
    }

    #[test]
    fn a_closed_output_loses_bytes_and_nothing_else() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut serial = Serial::new(writer.into(), EventFd::new(0).unwrap(), SerialRegisters::default()).unwrap();
        serial.write(0, b"x");
        serial.write(0, b"y");
    }
}
