//! Descriptions of domains against libvirt's own schema, and read back.

use std::process::Command;

use novacron_core::driver::{Attachment, AttachmentSource, DiskAttachment, NicAttachment};
use novacron_core::model::{
    ClusterId, CpuTopology, Discard, DiskCache, DiskIo, DiskLimits, DiskOptions, Epoch, Firmware,
    Hardware, KernelBoot, LinkState, MacAddr, MiB, NicLimits, NicOptions, PortBinding, PortId,
    VmId, VolumeFormat, VolumeId,
};

use super::super::xml::Interface;
use super::*;

const SCHEMAS: &str = "apt-get install libvirt-clients libxml2-utils";

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn disk(n: u128, source: AttachmentSource, format: VolumeFormat) -> DiskAttachment {
    DiskAttachment {
        name: format!("disk<{n}>"),
        volume: VolumeId::from_uuid(uuid(n)),
        attachment: Attachment {
            source,
            format,
            epoch: Epoch(3),
            enforces_writer: false,
        },
        options: DiskOptions::default(),
    }
}

/// A disk that is not as usual.
fn special(n: u128, bus: DiskBus) -> DiskAttachment {
    let file = AttachmentSource::File(format!("/srv/{n}.raw").into());
    DiskAttachment {
        options: DiskOptions {
            bus,
            cache: DiskCache::DirectSync,
            io: DiskIo::Native,
            discard: Discard::Ignore,
            read_only: bus == DiskBus::Scsi,
            limits: DiskLimits {
                bytes_sec: Some(1 << 20),
                read_iops: Some(100),
                write_iops: Some(200),
                ..DiskLimits::default()
            },
        },
        ..disk(n, file, VolumeFormat::Raw)
    }
}

fn nic(n: u128, binding: PortBinding) -> NicAttachment {
    NicAttachment {
        port: PortId::from_uuid(uuid(n)),
        mac: MacAddr([0x52, 0x54, 0, 0, 0, n as u8]),
        binding,
        forwards: vec![],
        options: NicOptions::default(),
    }
}

/// One of each kind, with names that XML has to escape.
fn spec() -> DomainSpec {
    let file = AttachmentSource::File("/srv/install <1>.iso".into());
    let mut medium = disk(15, file, VolumeFormat::Raw);
    medium.options.bus = DiskBus::Cdrom;
    DomainSpec {
        id: DomainId {
            cluster: ClusterId::from_uuid(uuid(1)),
            vm: VmId::from_uuid(uuid(2)),
            epoch: Epoch(3),
        },
        name: "web & <shop> 1".into(),
        hardware: Hardware {
            firmware: Firmware::UefiSecureBoot,
            memory_backing: MemoryBacking {
                hugepages: true,
                locked: true,
                shared: true,
            },
            clock: ClockOffset::LocalTime,
            watchdog: Some(model::WatchdogAction::InjectNmi),
            smbios: Smbios {
                product: Some("a, \"b\" <c>".to_owned()),
                ..Smbios::default()
            },
            tpm: Some(model::Tpm::default()),
            cdroms: 2,
            io_threads: 2,
            tablet: true,
            cpu: model::Cpu {
                hyperv: true,
                ..model::Cpu::default()
            },
            boot_order: vec![BootDevice::Cdrom, BootDevice::Network, BootDevice::Disk],
            ..Hardware::new(2, MiB(192))
        },
        disks: vec![
            disk(
                10,
                AttachmentSource::File("/srv/a & 'b'.qcow2".into()),
                VolumeFormat::Qcow2,
            ),
            disk(
                11,
                AttachmentSource::BlockDevice("/dev/vg/lv".into()),
                VolumeFormat::Raw,
            ),
            disk(
                12,
                AttachmentSource::Nbd {
                    socket: "/run/nbd".into(),
                    export: "e".into(),
                },
                VolumeFormat::Raw,
            ),
            special(13, DiskBus::Scsi),
            special(14, DiskBus::Sata),
            medium,
        ],
        nics: vec![
            nic(20, PortBinding::User),
            NicAttachment {
                options: NicOptions {
                    queues: 4,
                    mtu: Some(9000),
                    link: LinkState::Down,
                    limits: NicLimits {
                        inbound_bytes_sec: Some(10 << 20),
                        outbound_bytes_sec: Some((1 << 20) + 1),
                    },
                    ..NicOptions::default()
                },
                ..nic(
                    21,
                    PortBinding::Bridge {
                        bridge: "br0".into(),
                    },
                )
            },
            nic(
                22,
                PortBinding::Tap {
                    device: "tap0".into(),
                },
            ),
        ],
        nvram: None,
        generation_id: uuid(7),
        tpm: None,
        seed: Some(novacron_core::driver::Seed {
            meta_data: String::new(),
            user_data: "hidden".into(),
            network_config: None,
        }),
    }
}

fn kernel_spec() -> DomainSpec {
    let kernel = KernelBoot {
        kernel: "/k".into(),
        initrd: Some("/i".into()),
        cmdline: "console=ttyS0 a=\"<b>\"".into(),
    };
    let cpu = model::Cpu {
        model: CpuModel::Named("Nehalem".to_owned()),
        features: [("aes".to_owned(), true), ("vmx".to_owned(), false)].into(),
        hyperv: false,
        topology: Some(CpuTopology {
            sockets: 1,
            cores: 1,
            threads: 2,
        }),
    };
    DomainSpec {
        hardware: Hardware {
            kernel: Some(kernel),
            cpu,
            ..Hardware::new(2, MiB(192))
        },
        disks: vec![],
        nics: vec![],
        seed: None,
        ..spec()
    }
}

fn place(accel: Accel) -> Place {
    Place {
        accel,
        folder: Some("/var/lib/nc/2/3".into()),
        flash: None,
    }
}

fn described(spec: &DomainSpec, accel: Accel) -> DomainXml {
    let ovmf = Ovmf {
        code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd".into(),
        variables: "/unused".into(),
        is_secure: true,
    };
    let flash = spec.hardware.firmware.has_variables();
    let place = Place {
        flash: flash.then(|| (ovmf, "/pool/nvram".into())),
        ..place(accel)
    };
    describe(spec, &place, "test").unwrap()
}

/// In lines, to be looked at.
fn lines(xml: &DomainXml) -> String {
    let mut text = String::new();
    let mut writer = quick_xml::se::Serializer::new(&mut text);
    writer.indent(' ', 2);
    serde::Serialize::serialize(xml, writer).unwrap();
    text + "\n"
}

fn assert_valid(name: &str) {
    let file = format!("{}/src/libvirt/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut validate = Command::new("virt-xml-validate");
    let output = validate.args([&file, "domain"]).output().expect(SCHEMAS);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {words}; {SCHEMAS}");
}

#[test]
fn a_machine_of_everything_is_as_libvirts_schema_wants_it() {
    let expected = include_str!("../golden/everything.xml");
    let shown = lines(&described(&spec(), Accel::Tcg));
    assert_eq!(
        shown, expected,
        "if that is meant, write it to golden/everything.xml"
    );
    assert_valid("everything.xml");
}

#[test]
fn a_machine_with_its_own_kernel_is_as_libvirts_schema_wants_it() {
    let expected = include_str!("../golden/kernel.xml");
    let shown = lines(&described(&kernel_spec(), Accel::Kvm));
    assert_eq!(
        shown, expected,
        "if that is meant, write it to golden/kernel.xml"
    );
    assert_valid("kernel.xml");
}

#[test]
fn what_is_written_is_read_back() {
    let spec = spec();
    let written = described(&spec, Accel::Tcg);
    let read = DomainXml::of_text(&written.to_text().unwrap()).unwrap();
    assert_eq!(read.metadata.domain.as_ref().unwrap().id(), spec.id);
    assert_eq!(
        (&read.title, &read.devices),
        (&written.title, &written.devices)
    );
    let volumes: Vec<_> = read.volumes().map(|(volume, _)| volume).collect();
    let expected: Vec<_> = spec.disks.iter().map(|disk| disk.volume).collect();
    assert_eq!(volumes, expected);
    let ports: Vec<_> = (read.devices.interfaces.iter())
        .filter_map(Interface::port)
        .collect();
    let expected: Vec<_> = spec.nics.iter().map(|nic| nic.port).collect();
    assert_eq!(ports, expected);
}

#[test]
fn a_seed_stays_out_of_the_description() {
    let xml = described(&spec(), Accel::Tcg).to_text().unwrap();
    assert!(!xml.contains("hidden"), "{xml}");
}

#[test]
fn another_host_gets_no_seed_and_no_tpm() {
    let elsewhere = Place {
        folder: None,
        ..place(Accel::Kvm)
    };
    let mut plain = spec();
    for what in ["a seed", "a TPM"] {
        let error = describe(&plain, &elsewhere, "test").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().starts_with(what), "{error}");
        plain.seed = None;
    }
    plain.hardware.tpm = None;
    assert!(describe(&plain, &elsewhere, "test").is_ok());
}

#[test]
fn foreign_domains_of_any_driver_are_read() {
    for text in [
        "<domain type='vmware'><name>x</name><memory unit='KiB'>4</memory><vcpu placement='static'>1</vcpu>\
         <devices><disk type='file' device='disk'><source file='[ds] a.vmdk'/><target dev='sda' bus='scsi'/></disk>\
         <interface type='bridge'><source bridge='VM'/></interface><video><model type='vmvga'/></video></devices></domain>",
        "<domain type='lxc'><name>x</name><metadata><a:b xmlns:a='urn:a'>t</a:b></metadata><devices/></domain>",
        "<domain type='qemu'><name>x</name><devices><disk type='file' device='cdrom'><target dev='hda'/></disk>\
         <controller type='usb' index='0'/><disk type='volume' device='disk'><target dev='vda'/></disk></devices></domain>",
    ] {
        let read = DomainXml::of_text(text).unwrap();
        assert_eq!(read.name, "x");
        assert!(read.metadata.domain.is_none());
        assert!(
            read.devices
                .disks
                .iter()
                .all(|disk| disk.volume().is_none())
        );
    }
}

#[test]
fn a_domains_name_tells_its_vm() {
    let spec = spec();
    assert_eq!(named(&name_of(&spec)), Some(spec.id.vm));
    for foreign in [
        "web",
        "web-1.2",
        "über-5759249b-07be-54fb-998e-195face336fa.x",
        ".1",
        "",
    ] {
        assert_eq!(named(foreign), None, "{foreign}");
    }
}

#[test]
fn each_start_has_a_uuid_of_its_own() {
    let id = spec().id;
    let next = DomainId {
        epoch: Epoch(4),
        ..id
    };
    assert_ne!(uuid_of(id), uuid_of(next));
    assert_eq!(
        uuid_of(id).to_string(),
        "5759249b-07be-54fb-998e-195face336fa",
        "domains that are there would not be found any more"
    );
}
