//! Laying out PE files made by hand.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use common::{HEADERS_LEN, TinyPe, loaded, loaded_as_a_file};
use object::{
    LittleEndian as LE,
    pe::ImageSectionHeader,
    read::pe::{PeFile64, ResourceDirectory},
};
use ovmf_image::{
    PeError,
    pe::{Flattened, flatten, require_dxe_core},
};
use proptest::prelude::*;

fn flat(pe: &TinyPe) -> Flattened {
    flatten(&pe.build()).unwrap().unwrap()
}

fn place(section: &ImageSectionHeader) -> (&[u8], u32, u32, u32, u32) {
    let name = section.name.split(|&byte| byte == 0).next().unwrap();
    let characteristics = section.characteristics.get(LE).0;
    let address = section.virtual_address.get(LE);
    assert_eq!(section.pointer_to_raw_data.get(LE), address);
    (
        name,
        address,
        section.virtual_size.get(LE),
        section.size_of_raw_data.get(LE),
        characteristics,
    )
}

#[test]
fn an_image_with_sections_on_pages_stays_as_it_is() {
    assert_eq!(flatten(&TinyPe::core().build()).unwrap(), None);
}

#[test]
fn a_driver_gets_one_section_over_everything() {
    let old = TinyPe::driver().build();
    let new = flat(&TinyPe::driver());
    assert!(!new.resources_moved);

    let pe = PeFile64::parse(new.bytes.as_slice()).unwrap();
    let optional = &pe.nt_headers().optional_header;
    assert_eq!(optional.section_alignment.get(LE), 0x1000);
    assert_eq!(optional.size_of_image.get(LE), 0x1000);
    assert_eq!(optional.check_sum.get(LE), 0);
    let sections: Vec<_> = pe.section_table().iter().map(place).collect();
    assert_eq!(sections, [(&b".text"[..], 0, 0x1000, 0x1000, 0x6000_0020)]);

    let (old, new_loaded) = (loaded(&old), loaded(&new.bytes));
    assert_eq!(new_loaded, new.bytes);
    let headers = HEADERS_LEN as usize;
    assert_eq!(new_loaded[headers..old.len()], old[headers..]);
    assert!(new_loaded[old.len()..].iter().all(|&byte| byte == 0));
}

#[test]
fn memory_behind_the_raw_data_is_zero() {
    let mut driver = TinyPe::driver();
    driver.sections[1].memory_len = 0x2000;
    driver.size_of_image = 0x2340;
    let new = flat(&driver);
    assert_eq!(new.bytes.len(), 0x3000);
    assert!(new.bytes[0x400..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_section_without_a_size_in_memory_has_its_raw_size() {
    let mut driver = TinyPe::driver();
    driver.sections[1].memory_len = 0;
    assert_eq!(
        flat(&driver).bytes[0x340..0x400],
        flat(&TinyPe::driver()).bytes[0x340..0x400]
    );
}

#[test]
fn resources_get_a_section_of_their_own() {
    let new = flat(&TinyPe::driver_with_resources());
    assert!(new.resources_moved);
    let pe = PeFile64::parse(new.bytes.as_slice()).unwrap();
    let sections: Vec<_> = pe.section_table().iter().map(place).collect();
    let expected = [
        (&b".text"[..], 0, 0x1000, 0x1000, 0x6000_0020),
        (&b".rsrc"[..], 0x1000, 0x1000, 0x1000, 0x4000_0040),
    ];
    assert_eq!(sections, expected);
    assert_eq!(pe.data_directory(2).unwrap().virtual_address.get(LE), 0x1000);

    let directory = ResourceDirectory::new(&new.bytes[0x1000..]);
    let mut table = directory.root().unwrap();
    assert_eq!(
        table.entries[0]
            .name_or_id()
            .name()
            .unwrap()
            .to_string_lossy(directory)
            .unwrap(),
        "HII"
    );
    let data = loop {
        match table.entries[0].data(directory).unwrap() {
            object::read::pe::ResourceDirectoryEntryData::Table(below) => table = below,
            object::read::pe::ResourceDirectoryEntryData::Data(data) => break data,
        }
    };
    let start = data.offset_to_data.get(LE) as usize;
    assert!(start > 0x1000);
    assert_eq!(
        &new.bytes[start..][..data.size.get(LE) as usize],
        b"a package list"
    );
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    let file = TinyPe::driver_with_resources().build();
    for len in 0..file.len() {
        let refused = flatten(&file[..len]);
        assert!(
            matches!(refused, Err(PeError::Parse(_) | PeError::OutOfRange { .. })),
            "{len} bytes: {refused:?}"
        );
    }
}

#[test]
fn sections_outside_the_image_are_refused() {
    let mut driver = TinyPe::driver();
    driver.sections[1].address = 0xff0;
    let refused = flatten(&driver.build());
    assert!(
        matches!(
            refused,
            Err(PeError::OutOfRange {
                what: "a section in memory",
                start: 0xff0,
                end: 0x10b0,
                len: 0x400
            })
        ),
        "{refused:?}"
    );
    driver.sections[1].address = u32::MAX;
    assert!(matches!(
        flatten(&driver.build()),
        Err(PeError::OutOfRange { .. })
    ));
}

#[test]
fn sections_that_share_memory_are_refused() {
    for (at, address, end) in [
        (0, 0, HEADERS_LEN),
        (0, HEADERS_LEN - 1, HEADERS_LEN),
        (1, HEADERS_LEN, 0x340),
        (1, 0x33f, 0x340),
    ] {
        let mut driver = TinyPe::driver();
        driver.sections[at].address = address;
        let refused = flatten(&driver.build());
        assert!(
            matches!(refused, Err(PeError::SectionsOverlap { at: which, start, end: below })
                if (which, start, below) == (at, address, end)),
            "{refused:?}"
        );
    }
    let mut core = TinyPe::core();
    core.sections[0].address = 0;
    assert!(matches!(
        require_dxe_core(&core.build()),
        Err(PeError::SectionsOverlap { at: 0, .. })
    ));
}

#[test]
fn a_driver_for_another_processor_is_refused() {
    let other = TinyPe {
        machine: 0xaa64,
        ..TinyPe::driver()
    };
    assert!(matches!(
        flatten(&other.build()),
        Err(PeError::Machine {
            found: 0xaa64,
            expected: 0x8664
        })
    ));
}

#[test]
fn a_huge_image_is_refused() {
    let mut driver = TinyPe::driver();
    driver.size_of_image = 0x100_0001;
    let refused = flatten(&driver.build());
    assert!(matches!(
        refused,
        Err(PeError::ImageTooLarge {
            size: 0x100_0001,
            limit: 0x100_0000
        })
    ));
    driver.size_of_image = u32::MAX;
    assert!(matches!(
        flatten(&driver.build()),
        Err(PeError::ImageTooLarge { .. })
    ));
}

#[test]
fn resources_that_no_section_leads_to_are_refused() {
    let mut driver = TinyPe::driver_with_resources();
    driver.sections[2].name = b".res";
    assert!(matches!(
        flatten(&driver.build()),
        Err(PeError::ResourcesWithoutSection { rva: 0x400 })
    ));
}

#[test]
fn resources_that_nest_without_end_are_refused() {
    let mut driver = TinyPe::driver_with_resources();
    // The language level leads back to the root.
    driver.sections[2].content[68..72].copy_from_slice(&0x8000_0000_u32.to_le_bytes());
    assert!(matches!(
        flatten(&driver.build()),
        Err(PeError::ResourcesTooDeep { limit: 3 })
    ));
}

#[test]
fn a_resource_outside_the_directory_is_refused() {
    for address in [0u32, 0x3ff, 0x401 + 96, u32::MAX] {
        let mut driver = TinyPe::driver_with_resources();
        driver.sections[2].content[72..76].copy_from_slice(&address.to_le_bytes());
        let refused = flatten(&driver.build());
        assert!(
            matches!(
                refused,
                Err(PeError::OutOfRange {
                    what: "a resource",
                    ..
                })
            ),
            "{address:#x}: {refused:?}"
        );
    }
}

/// Two levels of tables, each with `entries` entries that lead to the next; the last level's lead
/// nowhere.
fn tables(entries: u16, next: impl Fn(u32) -> u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for level in 0..3 {
        let table_len = 16 + 8 * u32::from(entries);
        bytes.extend([0; 14]);
        bytes.extend(entries.to_le_bytes());
        for _ in 0..entries {
            let target = match level {
                2 => 3 * table_len,
                level => 0x8000_0000 | (next(level) * table_len),
            };
            bytes.extend([1, 0, 0, 0]);
            bytes.extend(target.to_le_bytes());
        }
    }
    bytes.extend([0; 16]);
    bytes
}

#[test]
fn tables_of_resources_that_many_entries_share_take_no_time() {
    let mut driver = TinyPe::driver_with_resources();
    // 27,000 million ways from the root to a data entry.
    let content = tables(3000, |level| level + 1);
    let len = u32::try_from(content.len()).unwrap();
    driver.sections[2].memory_len = len;
    driver.sections[2].content = content;
    driver.resources.1 = len;
    driver.size_of_image = 0x400 + len.next_multiple_of(0x40);
    let refused = flatten(&driver.build());
    assert!(
        matches!(refused, Err(PeError::ResourcesOverlap { .. })),
        "{refused:?}"
    );
}

#[test]
fn parts_of_the_resource_directory_that_overlap_are_refused() {
    // The data entry lies in the language's table; the data lies in the data entry.
    for (at, value) in [(68, 64_u32), (68, 56), (72, 0x400 + 80), (72, 0x400 + 76)] {
        let mut driver = TinyPe::driver_with_resources();
        driver.sections[2].content[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let refused = flatten(&driver.build());
        assert!(refused.is_err(), "{value:#x}: {refused:?}");
    }
}

#[test]
fn what_the_headers_find_by_its_place_in_the_old_file_is_left_out() {
    let mut file = TinyPe::driver().build();
    let end = u32::try_from(file.len()).unwrap();
    file.extend([0x5a; 16]);
    let mut put = |at: usize, value: u32| file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    // PointerToSymbolTable and NumberOfSymbols, and the data directory of signatures.
    put(NT_AT + 12, end);
    put(NT_AT + 16, 1);
    put(NT_AT + 24 + 112 + 4 * 8, end);
    put(NT_AT + 24 + 112 + 4 * 8 + 4, 16);
    let flat = flatten(&file).unwrap().unwrap();
    let pe = PeFile64::parse(flat.bytes.as_slice()).unwrap();
    let header = &pe.nt_headers().file_header;
    assert_eq!(
        (
            header.pointer_to_symbol_table.get(LE),
            header.number_of_symbols.get(LE)
        ),
        (0, 0)
    );
    assert!(pe.data_directory(4).is_none());
}

#[test]
fn sections_that_do_not_keep_the_alignment_of_the_header_are_not_on_pages() {
    let driver = TinyPe {
        alignment: 0x1000,
        ..TinyPe::driver()
    };
    let mut file = driver.build();
    let same = TinyPe::driver().build();
    // In the file the sections are where those of a driver are.
    file[..HEADERS_LEN as usize].copy_from_slice(&same[..HEADERS_LEN as usize]);
    file.truncate(HEADERS_LEN as usize);
    file.extend(&same[HEADERS_LEN as usize..]);
    file[NT_AT + 24 + 32..NT_AT + 24 + 36].copy_from_slice(&0x1000_u32.to_le_bytes());
    let flat = flatten(&file)
        .unwrap()
        .expect("it was taken for one with sections on pages");
    assert_eq!(flat.bytes, flatten(&same).unwrap().unwrap().bytes);

    let mut core = TinyPe::core();
    core.sections[0].address = 0x1040;
    assert!(matches!(
        require_dxe_core(&core.build()),
        Err(PeError::Alignment {
            found: 0x40,
            expected: 0x1000
        })
    ));
}

#[test]
fn an_entry_point_outside_the_image_is_refused() {
    const ENTRY_POINT_AT: usize = NT_AT + 24 + 16;
    for (pe, len) in [(TinyPe::core(), 0x2000), (TinyPe::driver(), 0x400)] {
        let check = |entry| {
            let file = with_field(&pe, ENTRY_POINT_AT, entry);
            match pe.alignment {
                0x1000 => require_dxe_core(&file),
                _ => flatten(&file).map(drop),
            }
        };
        check(len - 1).unwrap();
        for outside in [len, u32::MAX] {
            let refused = check(outside);
            assert!(
                matches!(
                    refused,
                    Err(PeError::OutOfRange {
                        what: "the entry point",
                        ..
                    })
                ),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn a_core_that_cannot_be_started_is_refused() {
    require_dxe_core(&TinyPe::core().build()).unwrap();

    let other = TinyPe {
        machine: 0xaa64,
        ..TinyPe::core()
    };
    let refused = require_dxe_core(&other.build());
    assert!(matches!(
        refused,
        Err(PeError::Machine {
            found: 0xaa64,
            expected: 0x8664
        })
    ));

    let application = TinyPe {
        subsystem: 10,
        ..TinyPe::core()
    };
    let refused = require_dxe_core(&application.build());
    assert!(matches!(
        refused,
        Err(PeError::Subsystem {
            found: 10,
            expected: 11
        })
    ));

    let refused = require_dxe_core(&TinyPe::driver().build());
    assert!(matches!(
        refused,
        Err(PeError::Alignment {
            found: 0x40,
            expected: 0x1000
        })
    ));

    assert!(matches!(require_dxe_core(b"MZ"), Err(PeError::Parse(_))));
}

/// Puts `value` where the optional header of a [`TinyPe`] has a field.
fn with_field(pe: &TinyPe, at: usize, value: u32) -> Vec<u8> {
    let mut file = pe.build();
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    file
}

/// Where a [`TinyPe`] has its NT headers, SizeOfHeaders, and the section table.
const NT_AT: usize = 0x80;
const SIZE_OF_HEADERS_AT: usize = NT_AT + 24 + 60;
const TABLE_AT: usize = NT_AT + 24 + 0xf0;

#[test]
fn headers_that_a_loader_does_not_have_in_memory_are_refused() {
    let sections = TinyPe::driver().sections.len();
    let table_end = TABLE_AT + sections * size_of::<ImageSectionHeader>();
    for end in [0, NT_AT, TABLE_AT, table_end - 1] {
        let file = with_field(&TinyPe::driver(), SIZE_OF_HEADERS_AT, u32::try_from(end).unwrap());
        let refused = flatten(&file);
        assert!(
            matches!(refused, Err(PeError::HeadersOutside { start, end: needed, size_of_headers })
                if (start, needed, size_of_headers) == (NT_AT as u64, table_end as u64, u32::try_from(end).unwrap())),
            "{refused:?}"
        );
        let core = with_field(
            &TinyPe::core(),
            SIZE_OF_HEADERS_AT,
            u32::try_from(end.min(TABLE_AT)).unwrap(),
        );
        assert!(matches!(
            require_dxe_core(&core),
            Err(PeError::HeadersOutside { .. })
        ));
    }
    let file = with_field(
        &TinyPe::driver(),
        SIZE_OF_HEADERS_AT,
        u32::try_from(table_end).unwrap(),
    );
    assert!(flatten(&file).unwrap().is_some());
}

#[test]
fn nt_headers_behind_size_of_headers_or_in_the_dos_header_are_refused() {
    let good = TinyPe::driver().build();
    let headers = &good[NT_AT..HEADERS_LEN as usize];
    for at in [4_usize, 0x3c, 0x600] {
        let mut file = vec![0; 0x1000];
        file[..0x40].copy_from_slice(&good[..0x40]);
        file[at..at + headers.len()].copy_from_slice(headers);
        file[0x3c..0x40].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
        // If the two overlap, the field at 0x3c is also one of the NT headers; the file must be
        // refused, whatever the error.
        let refused = flatten(&file);
        assert!(refused.is_err(), "{at:#x}: {refused:?}");
    }
}

#[test]
fn debug_information_is_where_its_address_is_or_gone() {
    const DEBUG_AT: usize = NT_AT + 24 + 112 + 6 * 8;
    let mut file = TinyPe::driver().build();
    let mut put = |at: usize, value: u32| file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    // Two pieces, one of which is not loaded.
    put(DEBUG_AT, 0x340);
    put(DEBUG_AT + 4, 56);
    for (at, address) in [(0x340, 0x380), (0x340 + 28, 0)] {
        put(at + 16, 0x20);
        put(at + 20, address);
        put(at + 24, 0x9999);
    }
    let flat = flatten(&file).unwrap().unwrap();
    let word = |at: usize| u32::from_le_bytes(flat.bytes[at..at + 4].try_into().unwrap());
    assert_eq!([word(0x350), word(0x354), word(0x358)], [0x20, 0x380, 0x380]);
    assert_eq!([word(0x36c), word(0x370), word(0x374)], [0, 0, 0]);

    // A directory that is not in the image, or in its headers.
    for (address, len) in [(0xff0, 56), (0xffff_fff0, 28), (0x80, 28), (HEADERS_LEN - 1, 28)] {
        file[DEBUG_AT..DEBUG_AT + 4].copy_from_slice(&u32::to_le_bytes(address));
        file[DEBUG_AT + 4..DEBUG_AT + 8].copy_from_slice(&u32::to_le_bytes(len));
        let refused = flatten(&file);
        assert!(
            matches!(refused, Err(PeError::OutOfRange { .. })),
            "{address:#x}, {len}"
        );
    }
}

proptest! {
    #[test]
    fn a_result_is_a_pe_file_with_each_byte_where_it_was(
        changes in proptest::collection::vec((0..HEADERS_LEN as usize, any::<u8>()), 1..6),
    ) {
        let mut file = TinyPe::driver_with_resources().build();
        for (at, value) in changes {
            file[at] = value;
        }
        if let Ok(Some(flat)) = flatten(&file) {
            let old = PeFile64::parse(file.as_slice()).unwrap();
            let new = PeFile64::parse(flat.bytes.as_slice()).unwrap();
            prop_assert!(new.section_table().len() <= old.section_table().len());
            prop_assert_eq!(loaded(&flat.bytes), flat.bytes.clone());
            let headers = old.nt_headers().optional_header.size_of_headers.get(LE) as usize;
            let before = loaded_as_a_file(&file);
            prop_assert_eq!(&flat.bytes[headers..before.len()], &before[headers..]);
            prop_assert_eq!(flatten(&flat.bytes).unwrap(), None);
        }
    }
}
