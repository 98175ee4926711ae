//! What the machine has, told by ACPI: hardware-reduced, without power management hardware, firmware code or old devices.
//!
//! Source: "Advanced Configuration and Power Interface (ACPI) Specification 6.5"; the generation id: "Virtual Machine
//! Generation ID" by Microsoft, as Linux's `drivers/virt/vmgenid.c` reads it.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path};
use acpi_tables::aml::{ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::{GENERATION_GSI, GENERATION_ID, RESET_PORT, RESET_VALUE, SERIAL_GSI, SERIAL_PORT, SLEEP_PORT, Slot};
use crate::devices::virtio::mmio::WINDOW;

const OEM: [u8; 6] = *b"FIRELT";
const OEM_TABLE: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const HEADER_BYTES: u32 = 36;

/// `IAPC_BOOT_ARCH`: no VGA, no clock in CMOS; and, by the bits that are not set, no keyboard controller to look for.
const NO_OLD_DEVICES: u16 = 1 << 2 | 1 << 5;

/// All tables, one after the other.
pub struct Tables {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// The address of the root pointer.
    pub root: u64,
}

/// The tables of a machine, to lie at `base`.
pub fn tables(base: u64, vcpus: u8, slots: &[Slot], serial: bool) -> Tables {
    let mut bytes = Vec::new();
    let mut place = |table: &dyn Aml| {
        let address = base + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        address
    };
    let dsdt = place(&Raw(dsdt(slots, serial)));
    let fadt = place(&fadt(dsdt));
    let madt = place(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    let root = place(&Rsdp::new(OEM, xsdt));
    Tables { bytes, root }
}

/// A table that is finished.
struct Raw(Sdt);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |address| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_OLD_DEVICES.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_PORT);
    fadt.sleep_status_reg = port(SLEEP_PORT + 1);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(slots: &[Slot], serial: bool) -> Sdt {
    let mut body = Vec::new();
    for (index, slot) in slots.iter().enumerate() {
        virtio(index, slot, &mut body);
    }
    generation(&mut body);
    if serial {
        console(&mut body);
    }
    let scope = Scope::raw(Path::new("_SB_"), body);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&scope);
    // Switching off: sleep type 5, which the sleep control register takes.
    let mut off = Vec::new();
    Name::new(Path::new("_S5_"), &Package::new(vec![&5u8, &0u8, &0u8, &0u8])).to_aml_bytes(&mut off);
    dsdt.append_slice(&off);
    dsdt
}

/// An edge of this interrupt, high, for nobody else.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn virtio(index: usize, slot: &Slot, body: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &"LNRO0005");
    let number = Name::new(Path::new("_UID"), &(index as u32));
    let coherent = Name::new(Path::new("_CCA"), &1u8);
    let window = Memory32Fixed::new(true, slot.base as u32, WINDOW as u32);
    let interrupt = edge(slot.gsi);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&window, &interrupt]));
    let path = Path::new(&format!("V{index:03}"));
    Device::new(path, vec![&id, &number, &coherent, &resources]).to_aml_bytes(body);
}

/// The generation id, and the event device that announces a change of it.
fn generation(body: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &"FLETGEN0");
    let compatible = Name::new(Path::new("_CID"), &"VMGENCTR");
    let described = Name::new(Path::new("_DDN"), &"VM_Gen_Counter");
    let (low, high) = (GENERATION_ID as u32, (GENERATION_ID >> 32) as u32);
    let address = Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high]));
    Device::new(Path::new("VGEN"), vec![&id, &compatible, &described, &address]).to_aml_bytes(body);

    let id = Name::new(Path::new("_HID"), &"ACPI0013");
    let interrupt = edge(GENERATION_GSI);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt]));
    let target = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&target, &0x80u8);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&notify]);
    Device::new(Path::new("GED_"), vec![&id, &resources, &event]).to_aml_bytes(body);
}

fn console(body: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let number = Name::new(Path::new("_UID"), &0u8);
    let ports = IO::new(SERIAL_PORT as u16, SERIAL_PORT as u16, 1, 8);
    let interrupt = edge(SERIAL_GSI);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt]));
    Device::new(Path::new("COM1"), vec![&id, &number, &resources]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests;
