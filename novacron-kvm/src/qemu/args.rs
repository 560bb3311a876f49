//! A domain as QEMU's command line.
//!
//! A q35 machine on which every virtio device sits behind a PCIe root port of its own: ports `rp0…` for what is there at
//! the start, eight to a slot; ports `hp0…hp7` stay empty for what is plugged in later. File names are relative to the
//! run directory, which is QEMU's working directory; sockets are inherited descriptors.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use novacron_core::model::{
    BootDevice, ClockOffset, DiskBus, MemoryBacking, Smbios, WatchdogAction,
};
use serde_json::json;

use super::devices::{
    Properties, SCSI, SCSI_BUS, blockdev, booted, cdrom_device, disk_device, io_thread, key_value,
    nic_device, on_thread,
};
use super::net::Link;
use super::screens;
use super::spec::StoredSpec;
use crate::accel::Accel;
use crate::boot;
use crate::firmware::Ovmf;
use crate::tpm;

/// Root ports for hot-plug.
pub(super) const SPARE_PORTS: usize = 8;
/// The most disks and NICs at the start: slots 2 to 15 hold eight root ports each, and five ports are our own devices'.
pub(super) const MAX_DEVICES: usize = 14 * 8 - 5;
const FIRST_PORT_SLOT: usize = 0x2;
const FIRST_SPARE_SLOT: usize = 0x10;
const WATCHDOG_SLOT: &str = "0x1e";

/// The balloon's place in QEMU's tree of objects.
pub(super) const BALLOON: &str = "/machine/peripheral/balloon";
/// How often a guest is asked for its memory's numbers, seconds.
pub(crate) const BALLOON_STATS_SECS: u32 = 5;

/// The name of the agent's virtio port, as qemu-ga looks for it.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// Everything that decides the command line.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) spec: &'a StoredSpec,
    pub(super) accel: Accel,
    /// QEMU's `-cpu`.
    pub(super) cpu: &'a str,
    pub(super) flash: Option<&'a Flash>,
    /// One for each NIC.
    pub(super) links: &'a [Link],
    /// Listening sockets of the monitor, the console and the agent.
    pub(super) sockets: [RawFd; 3],
}

/// What the firmware is started from.
#[derive(Debug)]
pub(super) struct Flash {
    pub(super) ovmf: Ovmf,
    /// Where its variables are.
    pub(super) variables: PathBuf,
    /// Whether that is a block device.
    pub(super) is_device: bool,
    /// How long they are, bytes: a volume may be longer, and the firmware would look in the wrong place then.
    pub(super) length: u64,
}

impl Machine<'_> {
    /// The command line, without the binary.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut line = Line::default();
        self.basics(&mut line);
        self.boot(&mut line);
        self.channels(&mut line);
        for spare in 0..SPARE_PORTS {
            let slot = FIRST_SPARE_SLOT + spare;
            line.device(&root_port(
                format!("hp{spare}"),
                0x80 + spare,
                format!("{slot:#x}"),
                false,
            ));
        }
        self.disks(&mut line);
        for (n, (nic, link)) in self.spec.nics.iter().zip(self.links).enumerate() {
            line.add("-netdev", link.key_value(nic.port));
            let bus = line.next_port();
            let place = self.boot_place(BootDevice::Network, n);
            line.device(&nic_device(nic, &bus, place));
        }
        line.arguments
    }

    fn basics(&self, line: &mut Line) {
        let spec = self.spec;
        for flag in ["-nodefaults", "-no-user-config", "-S"] {
            line.arguments.push(flag.into());
        }
        let name = spec.name.replace(',', ",,");
        line.add(
            "-name",
            format!("guest={name},process=vm:{name},debug-threads=on"),
        );
        line.add("-uuid", spec.id.vm.to_string());
        let hardware = &spec.hardware;
        let MemoryBacking {
            hugepages,
            locked,
            shared,
        } = hardware.memory_backing;
        let mut machine = "q35".to_owned();
        if let Some(flash) = self.flash {
            machine += ",pflash0=firmware,pflash1=variables";
            if flash.ovmf.is_secure {
                machine += ",smm=on";
            }
        }
        let size = format!("{}M", hardware.memory.0);
        if hugepages || shared {
            let on = |yes| if yes { "on" } else { "off" };
            let (share, huge) = (on(shared), on(hugepages));
            let object =
                format!("memory-backend-memfd,id=ram,size={size},share={share},hugetlb={huge}");
            line.add("-object", object);
            machine += ",memory-backend=ram";
        }
        if hardware.cpu.hyperv {
            machine += ",hpet=off";
        }
        line.add("-machine", machine);
        if locked {
            line.add("-overcommit", "mem-lock=on");
        }
        let accel = match self.accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        };
        line.add("-accel", accel);
        line.add("-cpu", self.cpu);
        let topology = hardware.cpu.topology_of(hardware.vcpus);
        let (sockets, cores, threads) = (topology.sockets, topology.cores, topology.threads);
        line.add(
            "-smp",
            format!(
                "cpus={},sockets={sockets},cores={cores},threads={threads}",
                hardware.vcpus
            ),
        );
        line.add("-m", format!("size={size}"));
        let mut clock = match hardware.clock {
            ClockOffset::Utc => "base=utc",
            ClockOffset::LocalTime => "base=localtime",
        }
        .to_owned();
        if hardware.cpu.hyperv {
            // Windows counts ticks: those that it missed are made up for.
            clock += ",driftfix=slew";
            line.add("-global", "kvm-pit.lost_tick_policy=delay");
        }
        line.add("-rtc", clock);
        let mut action = "shutdown=pause,panic=pause".to_owned();
        if let Some(watchdog) = hardware.watchdog {
            action += ",watchdog=";
            action += watchdog_action(watchdog);
            line.add(
                "-device",
                format!("i6300esb,bus=pcie.0,addr={WATCHDOG_SLOT}"),
            );
        }
        line.add("-action", action);
        if hardware.smbios != Smbios::default() {
            line.add("-smbios", smbios(&hardware.smbios));
        }
        line.add("-display", "none");
        line.add("-vnc", format!("unix:{}", screens::SOCKET));
        line.add("-device", "VGA");
        line.add("-device", "pvpanic");
        line.add("-device", format!("vmgenid,guid={}", spec.generation_id));
        if spec.tpm.is_some() {
            line.add("-chardev", format!("socket,id=swtpm,path={}", tpm::SOCKET));
            line.add("-tpmdev", "emulator,id=tpm,chardev=swtpm");
            line.add("-device", "tpm-crb,tpmdev=tpm");
        }
    }

    fn boot(&self, line: &mut Line) {
        if let Some(flash) = self.flash {
            let code = json!({
                "driver": "raw", "node-name": "firmware", "read-only": true,
                "file": { "driver": "file", "filename": flash.ovmf.code },
            });
            let driver = if flash.is_device {
                "host_device"
            } else {
                "file"
            };
            let variables = json!({
                "driver": "raw", "node-name": "variables", "size": flash.length,
                "file": { "driver": driver, "filename": flash.variables, "locking": "on" },
            });
            line.add("-blockdev", code.to_string());
            line.add("-blockdev", variables.to_string());
            if flash.ovmf.is_secure {
                line.add("-global", "driver=cfi.pflash01,property=secure,value=on");
            }
        }
        let Some(kernel) = &self.spec.hardware.kernel else {
            line.add("-boot", "strict=on");
            return;
        };
        line.add("-kernel", &kernel.kernel);
        if let Some(initrd) = &kernel.initrd {
            line.add("-initrd", initrd);
        }
        line.add("-append", &kernel.cmdline);
    }

    fn channels(&self, line: &mut Line) {
        let [qmp, console, agent] = self.sockets;
        line.add(
            "-chardev",
            format!("socket,id=qmp,fd={qmp},server=on,wait=off"),
        );
        line.add("-mon", "chardev=qmp,mode=control");
        let log = "logfile=console.log,logappend=on";
        line.add(
            "-chardev",
            format!("socket,id=console,fd={console},server=on,wait=off,{log}"),
        );
        line.add("-serial", "chardev:console");
        line.add(
            "-chardev",
            format!("socket,id=agent,fd={agent},server=on,wait=off"),
        );
        let bus = line.next_port();
        line.add("-device", format!("virtio-serial-pci,id=ports,bus={bus}"));
        line.add(
            "-device",
            format!("virtserialport,id=agent,bus=ports.0,chardev=agent,name={AGENT_PORT}"),
        );
        line.add("-object", "rng-random,id=rng,filename=/dev/urandom");
        let bus = line.next_port();
        line.add("-device", format!("virtio-rng-pci,rng=rng,bus={bus}"));
        let bus = line.next_port();
        let mut balloon = format!("virtio-balloon-pci,id=balloon,deflate-on-oom=on,bus={bus}");
        if reports_free_pages(self.spec.hardware.memory_backing) {
            balloon += ",free-page-reporting=on";
        }
        line.add("-device", balloon);
        if self.spec.hardware.tablet {
            let bus = line.next_port();
            line.add("-device", format!("qemu-xhci,id=usb,bus={bus}"));
            line.add("-device", "usb-tablet,id=tablet,bus=usb.0");
        }
    }

    /// The place of the n-th of these devices in the order of booting.
    fn boot_place(&self, device: BootDevice, n: usize) -> Option<usize> {
        let spec = self.spec;
        boot::place(&spec.hardware, device, n, |device| match device {
            BootDevice::Disk => spec.disks.len() - spec.on_bus(DiskBus::Cdrom).count(),
            BootDevice::Cdrom => spec.hardware.cdroms.into(),
            BootDevice::Network => spec.nics.len(),
        })
    }

    fn disks(&self, line: &mut Line) {
        let io_threads = usize::from(self.spec.hardware.io_threads);
        for n in 0..io_threads {
            line.add("-object", format!("iothread,id={}", io_thread(n)));
        }
        let (mut sata, mut virtio, mut places) = (0.., 0.., 0..);
        if self.spec.on_bus(DiskBus::Scsi).next().is_some() {
            let bus = line.next_port();
            let mut controller = format!("virtio-scsi-pci,id={SCSI},bus={bus}");
            if io_threads > 0 {
                controller += &format!(",iothread={}", io_thread(0));
            }
            line.add("-device", controller);
        }
        for disk in &self.spec.disks {
            line.add("-blockdev", blockdev(disk).to_string());
            let bus = match disk.options.bus {
                DiskBus::Virtio | DiskBus::Nvme => line.next_port(),
                DiskBus::Scsi => SCSI_BUS.to_owned(),
                DiskBus::Sata => format!("ide.{}", sata.next().unwrap_or(0)),
                DiskBus::Cdrom => continue,
            };
            let n = places.next().unwrap_or(0);
            let place = self.boot_place(BootDevice::Disk, n);
            let mut device = booted(disk_device(disk, &bus), place);
            if disk.options.bus == DiskBus::Virtio {
                device.extend(on_thread(virtio.next().unwrap_or(0), io_threads));
            }
            line.device(&device);
        }
        let mut media = self.spec.on_bus(DiskBus::Cdrom);
        for drive in 0..self.spec.hardware.cdroms {
            let place = self.boot_place(BootDevice::Cdrom, drive.into());
            let bus = format!("ide.{}", boot::drive_port(&self.spec.hardware, drive));
            line.device(&booted(cdrom_device(drive, bus, media.next()), place));
        }
        if self.spec.seed {
            let seed = json!({
                "driver": "raw", "node-name": "seed", "read-only": true,
                "file": { "driver": "file", "filename": "seed.iso" },
            });
            line.add("-blockdev", seed.to_string());
            let bus = line.next_port();
            line.add(
                "-device",
                format!("virtio-blk-pci,id=seed,bus={bus},drive=seed,serial=cidata"),
            );
        }
    }
}

/// Whether what a guest does not use goes back to the host. Locked memory cannot, and another guest could take huge pages
/// that were given back, so that this one finds none when it wants them again.
pub(crate) fn reports_free_pages(backing: MemoryBacking) -> bool {
    !(backing.locked || backing.hugepages)
}

/// QEMU's and libvirt's word.
pub(crate) fn watchdog_action(action: WatchdogAction) -> &'static str {
    match action {
        WatchdogAction::Reset => "reset",
        WatchdogAction::Shutdown => "shutdown",
        WatchdogAction::InjectNmi => "inject-nmi",
        WatchdogAction::None => "none",
    }
}

/// `-smbios`, less the UUID.
pub(crate) fn smbios(smbios: &Smbios) -> String {
    let fields = smbios.fields();
    let fields = fields.map(|(name, value)| format!(",{name}={}", value.replace(',', ",,")));
    fields.fold("type=1".to_owned(), |all, field| all + &field)
}

#[derive(Default)]
struct Line {
    arguments: Vec<OsString>,
    ports: usize,
}

impl Line {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.arguments.extend([option.into(), value.into()]);
    }

    fn device(&mut self, properties: &[(&str, String)]) {
        self.add("-device", key_value(properties));
    }

    /// Makes the next root port; its name.
    fn next_port(&mut self) -> String {
        let (number, function) = (self.ports, self.ports % 8);
        let slot = FIRST_PORT_SLOT + number / 8;
        self.ports += 1;
        let name = format!("rp{number}");
        let address = format!("{slot:#x}.{function:#x}");
        self.device(&root_port(name.clone(), number + 1, address, function == 0));
        name
    }
}

fn root_port(id: String, chassis: usize, address: String, first_of_slot: bool) -> Properties {
    let mut port = vec![
        ("driver", "pcie-root-port".to_owned()),
        ("id", id),
        ("bus", "pcie.0".to_owned()),
        ("chassis", chassis.to_string()),
        ("addr", address),
    ];
    if first_of_slot {
        port.push(("multifunction", "on".to_owned()));
    }
    port
}

#[cfg(test)]
mod tests {
    use novacron_core::driver::DomainId;
    use novacron_core::model::{
        ClusterId, DiskOptions, Epoch, Hardware, KernelBoot, MacAddr, MiB, NicModel, NicOptions,
        PortBinding, PortId, VmId, VolumeFormat, VolumeId,
    };
    use uuid::Uuid;

    use super::super::devices::volume_node;
    use super::super::spec::{StoredDisk, StoredNic, StoredSource};
    use super::*;
    use crate::tpm::Kept;

    fn spec() -> StoredSpec {
        let uuid = |n| Uuid::from_u128(n);
        StoredSpec {
            id: DomainId {
                cluster: ClusterId::from_uuid(uuid(1)),
                vm: VmId::from_uuid(uuid(2)),
                epoch: Epoch(3),
            },
            name: "web,1".into(),
            hardware: Hardware::new(2, MiB(192)),
            disks: vec![StoredDisk {
                name: "root".into(),
                volume: VolumeId::from_uuid(uuid(4)),
                source: StoredSource::File("/srv/a,b.qcow2".into()),
                format: VolumeFormat::Qcow2,
                epoch: Epoch(3),
                options: DiskOptions::default(),
            }],
            nics: vec![StoredNic {
                port: PortId::from_uuid(uuid(5)),
                mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
                binding: PortBinding::User,
                forwards: vec![],
                options: NicOptions::default(),
            }],
            seed: true,
            nvram: None,
            generation_id: uuid(7),
            tpm: None,
        }
    }

    fn shown(spec: &StoredSpec, flash: Option<&Flash>) -> String {
        let links = [Link::User(vec!["tcp:127.0.0.1:2222-:22".into()])];
        shown_with(spec, flash, &links)
    }

    fn shown_with(spec: &StoredSpec, flash: Option<&Flash>, links: &[Link]) -> String {
        let machine = Machine {
            spec,
            accel: Accel::Tcg,
            cpu: "max",
            flash,
            links,
            sockets: [10, 11, 12],
        };
        let arguments = machine.arguments();
        let words = arguments.iter().map(|word| word.to_str().unwrap());
        let mut text = String::new();
        for word in words {
            text.push_str(if word.starts_with('-') { "\n" } else { " " });
            text.push_str(word);
        }
        text.trim_start().to_owned()
    }

    #[test]
    fn a_machine_that_boots_from_its_disk() {
        let expected = include_str!("golden/disk.txt");
        assert_eq!(
            shown(&spec(), None),
            expected.trim_end(),
            "if that is meant, write it to golden/disk.txt"
        );
    }

    #[test]
    fn a_kernel_replaces_the_boot_order_and_uefi_brings_its_flash() {
        let kernel = KernelBoot {
            kernel: "/k,1".into(),
            initrd: Some("/i".into()),
            cmdline: "console=ttyS0".into(),
        };
        let ovmf = Ovmf {
            code: "/c.fd".into(),
            variables: "/v.fd".into(),
            is_secure: true,
        };
        let flash = Flash {
            ovmf,
            variables: "/pool/v".into(),
            is_device: false,
            length: 540_672,
        };
        let mut spec = spec();
        spec.hardware.kernel = Some(kernel);
        let line = shown(&spec, Some(&flash));
        assert!(
            line.contains("-kernel /k,1\n-initrd /i\n-append console=ttyS0\n"),
            "{line}"
        );
        assert!(
            !line.contains("bootindex") && !line.contains("-boot"),
            "{line}"
        );
        assert!(
            line.contains("q35,pflash0=firmware,pflash1=variables,smm=on"),
            "{line}"
        );
        let variables =
            r#""filename":"/pool/v","locking":"on"},"node-name":"variables","size":540672}"#;
        assert!(line.contains(variables), "{line}");
        assert!(line.contains("property=secure,value=on"), "{line}");
    }

    #[test]
    fn special_memory_a_watchdog_a_tpm_and_words_for_smbios() {
        let mut spec = spec();
        let hardware = &mut spec.hardware;
        hardware.memory_backing = MemoryBacking {
            hugepages: true,
            locked: true,
            shared: true,
        };
        hardware.clock = ClockOffset::LocalTime;
        hardware.watchdog = Some(WatchdogAction::Shutdown);
        hardware.smbios.serial = Some("a,b".to_owned());
        spec.tpm = Some(Kept::default());
        let line = shown(&spec, None);
        assert!(!line.contains("free-page-reporting"), "{line}");
        for wanted in [
            "-chardev socket,id=swtpm,path=tpm\n-tpmdev emulator,id=tpm,chardev=swtpm\n-device tpm-crb,tpmdev=tpm\n",
            "-object memory-backend-memfd,id=ram,size=192M,share=on,hugetlb=on\n",
            "-machine q35,memory-backend=ram\n",
            "-overcommit mem-lock=on\n",
            "-rtc base=localtime\n",
            "-device i6300esb,bus=pcie.0,addr=0x1e\n",
            "-action shutdown=pause,panic=pause,watchdog=shutdown\n",
            "-smbios type=1,serial=a,,b\n",
        ] {
            assert!(line.contains(wanted), "{line}");
        }
    }

    #[test]
    fn a_nic_has_its_model_its_queues_and_its_mtu() {
        let mut spec = spec();
        spec.nics[0].options.queues = 4;
        spec.nics[0].options.mtu = Some(9000);
        let links = [Link::Tap {
            device: "tap0".into(),
            queues: 4,
        }];
        let line = shown_with(&spec, None, &links);
        let queues = "tap,id=net-00000000-0000-0000-0000-000000000005,ifname=tap0,\
                      script=no,downscript=no,queues=4\n";
        assert!(line.contains(queues), "{line}");
        let device = "romfile=,mq=on,vectors=10,host_mtu=9000";
        assert!(line.contains(device), "{line}");
        spec.nics[0].options = NicOptions {
            model: NicModel::E1000e,
            ..NicOptions::default()
        };
        let line = shown(&spec, None);
        assert!(line.contains("-device e1000e,id=nic-"), "{line}");
    }

    #[test]
    fn drives_and_nics_have_their_place_in_the_boot_order() {
        let mut spec = spec();
        spec.hardware.cdroms = 2;
        spec.hardware.boot_order = vec![BootDevice::Cdrom, BootDevice::Network, BootDevice::Disk];
        let mut medium = spec.disks[0].clone();
        medium.volume = VolumeId::from_uuid(Uuid::from_u128(9));
        medium.options.bus = DiskBus::Cdrom;
        spec.disks.insert(0, medium);
        let node = volume_node(VolumeId::from_uuid(Uuid::from_u128(9)));
        spec.hardware.io_threads = 1;
        spec.hardware.cpu.hyperv = true;
        let line = shown(&spec, None);
        for wanted in [
            "-object iothread,id=io0\n",
            "-machine q35,hpet=off\n",
            "-rtc base=utc,driftfix=slew\n",
            &format!("-device ide-cd,id=cd0,bus=ide.4,drive={node},bootindex=0\n"),
            "-device ide-cd,id=cd1,bus=ide.5,bootindex=1\n",
            "mac=52:54:00:00:00:01,bootindex=2",
            "serial=root,write-cache=on,bootindex=3,iothread=io0\n",
            &format!(r#""node-name":"{node}","read-only":true}}"#),
        ] {
            assert!(line.contains(wanted), "{wanted}: {line}");
        }
        assert!(!line.contains("romfile="), "{line}");
    }

    #[test]
    fn every_device_has_a_place_up_to_the_limit() {
        let mut full = spec();
        full.hardware.tablet = true;
        let disk = full.disks[0].clone();
        full.disks = (0..MAX_DEVICES as u128 - 1)
            .map(|n| StoredDisk {
                volume: VolumeId::from_uuid(Uuid::from_u128(n)),
                ..disk.clone()
            })
            .collect();
        let line = shown(&full, None);
        assert!(
            line.contains("addr=0xf.0x7") && line.matches("addr=0x10").count() == 1,
            "{line}"
        );
    }
}
