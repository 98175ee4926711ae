//! What a machine's state depends on beyond its own bytes: where it may be restored.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arch::{self, HostError};

/// The facts of a host that a snapshot taken on it relies on. All of them must be the same where it is restored.
///
/// The guest's kernel chose its instructions and its defences against the processor's flaws when it booted, by what CPUID told
/// it. On a processor that differs it would crash, or, worse, run without a defence that it needs. Stepping is therefore
/// compared too. A microcode update shows in [`cpuid`](Self::cpuid), because it adds feature bits. Things that KVM adjusts on
/// restore, such as the frequency of the time-stamp counter, belong in the state and not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    /// Who made the processor, as it names itself: `AuthenticAMD`, `GenuineIntel`; on aarch64 its implementer code.
    pub vendor: String,
    /// Family, with the extended family added.
    pub family: u32,
    /// Model, with the extended model; on aarch64 the part number.
    pub model: u32,
    /// Stepping; on aarch64 variant and revision.
    pub stepping: u32,
    /// A digest of all CPUID leaves that guests are shown.
    pub cpuid: [u8; 32],
    /// What the state needs of KVM, by name: for example the size of its XSAVE area.
    pub kvm: BTreeMap<String, u64>,
}

/// Why the facts of this host cannot be told.
#[derive(Debug, Error)]
pub enum FactsError {
    /// The device cannot be opened.
    #[error("cannot open /dev/kvm")]
    Kvm(#[from] kvm_ioctls::Error),
    /// It does not say what guests would be shown.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Host {
    /// The host whose `/dev/kvm` this process can open.
    pub fn of_this_machine() -> Result<Self, FactsError> {
        let kvm = kvm_ioctls::Kvm::new()?;
        let shown = arch::Host::probe(&kvm)?.shown();
        let xsave = kvm.check_extension_int(kvm_ioctls::Cap::Xsave2);
        Ok(Self::this(shown, BTreeMap::from([("xsave".to_owned(), u64::try_from(xsave).unwrap_or_default())])))
    }

    /// This host. The caller knows what guests are shown (`cpuid`) and what their state needs (`kvm`).
    pub fn this(cpuid: [u8; 32], kvm: BTreeMap<String, u64>) -> Self {
        let processor = processor();
        Self {
            architecture: std::env::consts::ARCH.into(),
            vendor: processor.vendor,
            family: processor.family,
            model: processor.model,
            stepping: processor.stepping,
            cpuid,
            kvm,
        }
    }

    /// Whether a snapshot that was taken on this host can be restored on that one.
    ///
    /// # Errors
    /// The first fact that differs.
    pub fn accepts(&self, there: &Host) -> Result<(), HostMismatch> {
        let differ = |fact: &str, taken: &dyn fmt::Display, here: &dyn fmt::Display| HostMismatch {
            fact: fact.into(),
            taken: taken.to_string(),
            here: here.to_string(),
        };
        let texts = [
            ("architecture", &self.architecture, &there.architecture),
            ("processor vendor", &self.vendor, &there.vendor),
        ];
        for (fact, taken, here) in texts {
            if taken != here {
                return Err(differ(fact, taken, here));
            }
        }
        let numbers = [
            ("processor family", self.family, there.family),
            ("processor model", self.model, there.model),
            ("processor stepping", self.stepping, there.stepping),
        ];
        for (fact, taken, here) in numbers {
            if taken != here {
                return Err(differ(fact, &taken, &here));
            }
        }
        if self.cpuid != there.cpuid {
            let short = |digest: &[u8; 32]| digest[..6].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            return Err(differ("digest of the processor's features", &short(&self.cpuid), &short(&there.cpuid)));
        }
        let shown = |value: Option<&u64>| value.map_or_else(|| "absent".to_owned(), u64::to_string);
        for name in self.kvm.keys().chain(there.kvm.keys()) {
            let (taken, here) = (self.kvm.get(name), there.kvm.get(name));
            if taken != here {
                return Err(differ(&format!("KVM value {name}"), &shown(taken), &shown(here)));
            }
        }
        Ok(())
    }
}

/// A snapshot does not fit this host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("it was taken where the {fact} was {taken}, here it is {here}; take the snapshot again on this host")]
pub struct HostMismatch {
    /// Which fact differs, the first in the order of [`Host`]'s fields.
    pub fact: String,
    /// Its value where the snapshot was taken.
    pub taken: String,
    /// Its value on the host that should restore it.
    pub here: String,
}

struct Processor {
    vendor: String,
    family: u32,
    model: u32,
    stepping: u32,
}

/// CPUID leaves 0 and 1 (AMD64 Architecture Programmer's Manual, volume 3, appendix E).
#[cfg(target_arch = "x86_64")]
fn processor() -> Processor {
    use std::arch::x86_64::__cpuid;

    let names = __cpuid(0);
    let vendor: Vec<u8> = [names.ebx, names.edx, names.ecx].iter().flat_map(|part| part.to_le_bytes()).collect();
    let signature = __cpuid(1).eax;
    let (family, model) = ((signature >> 8) & 0xf, (signature >> 4) & 0xf);
    let extended = family == 0xf || family == 6;
    Processor {
        vendor: String::from_utf8_lossy(&vendor).into_owned(),
        family: if family == 0xf { family + ((signature >> 20) & 0xff) } else { family },
        model: if extended { model | (((signature >> 16) & 0xf) << 4) } else { model },
        stepping: signature & 0xf,
    }
}

/// MIDR_EL1 as the kernel shows it (Documentation/arch/arm64/cpu-feature-registers.rst); zeros where it does not.
#[cfg(target_arch = "aarch64")]
fn processor() -> Processor {
    let shown =
        std::fs::read_to_string("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1").unwrap_or_default();
    let midr = u32::from_str_radix(shown.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    Processor {
        vendor: format!("{:#04x}", midr >> 24),
        family: (midr >> 16) & 0xf,
        model: (midr >> 4) & 0xfff,
        stepping: ((midr >> 20) & 0xf) << 4 | (midr & 0xf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_the_one_that_the_kernel_names() {
        let here = Host::this([0; 32], BTreeMap::new());
        let told = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let value = |name: &str| {
            let line = told.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split(':').nth(1)).map(|value| value.trim().to_owned())
        };
        if let Some(vendor) = value("vendor_id") {
            assert_eq!(here.vendor, vendor);
            assert_eq!(Some(here.family.to_string()), value("cpu family"));
            assert_eq!(Some(here.model.to_string()), value("model"));
            assert_eq!(Some(here.stepping.to_string()), value("stepping"));
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        let here = Host::this([1; 32], BTreeMap::from([("xsave bytes".into(), 2696)]));
        assert_eq!(here.accepts(&here), Ok(()));
        let first = |change: fn(&mut Host)| {
            let mut there = here.clone();
            change(&mut there);
            here.accepts(&there).unwrap_err()
        };
        assert_eq!(first(|host| host.architecture = "sparc".into()).fact, "architecture");
        assert_eq!(first(|host| host.vendor = "Other".into()).here, "Other");
        assert_eq!(first(|host| host.stepping += 1).fact, "processor stepping");
        let both = first(|host| {
            host.model += 1;
            host.cpuid = [2; 32];
        });
        assert_eq!(both.fact, "processor model");
        assert_eq!(first(|host| host.cpuid = [2; 32]).here, "020202020202");
        let more = first(|host| host.kvm.extend([("a capability".into(), 1)]));
        assert_eq!(
            more.to_string(),
            "it was taken where the KVM value a capability was absent, here it is 1; take the snapshot again on this host"
        );
        assert_eq!(first(|host| host.kvm.clear()).here, "absent");
    }
}
