//! Changing images made by hand, whole and broken.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may panic"
)]

mod common;

use common::{
    DXE_LEN, MAIN_LEN, OLD_CORE, OTHER, PAYLOAD_FILE, PEI_CORE, STREAM_AT, TinyPe, dxe_files, ffs_file,
    image, image_of, leaf, lzma_section, payload, sections, volume,
};
use ovmf_image::{BinaryGuid, Change, Image, ImageError, PeError, guids};
use patina::pi::fw_fs::ffs::{file::raw::r#type as file_type, section::raw_type};
use patina_ffs::{file::File, section::Section, volume::VolumeRef};
use patina_ffs_extractors::LzmaSectionExtractor;

fn refused(bytes: &[u8]) -> ImageError {
    match Image::open(bytes) {
        Ok(_) => panic!("the image was accepted"),
        Err(error) => error,
    }
}

/// The files of DXEFV: name, and the content of the PE32 section.
fn dxe_of(bytes: &[u8]) -> Vec<(BinaryGuid, Vec<u8>)> {
    let main = VolumeRef::new(bytes).unwrap();
    let payload = main
        .files()
        .next()
        .unwrap()
        .unwrap()
        .sections_with_extractor(&LzmaSectionExtractor)
        .unwrap();
    let mut volumes = payload
        .iter()
        .filter(|section| section.section_type_raw() == raw_type::FIRMWARE_VOLUME_IMAGE);
    let dxe = volumes.next_back().unwrap().try_content_as_slice().unwrap();
    let volume = VolumeRef::new(dxe).unwrap();
    let files = volume.files().map(|file| {
        let file = file.unwrap();
        (
            file.name(),
            file.sections().unwrap()[0]
                .try_content_as_slice()
                .unwrap()
                .to_vec(),
        )
    });
    files.collect()
}

#[test]
fn an_unchanged_image_is_written_byte_for_byte() {
    let bytes = image();
    assert_eq!(Image::open(&bytes).unwrap().finish().unwrap(), bytes);
}

#[test]
fn the_core_is_replaced_and_nothing_else() {
    let bytes = image();
    let core = TinyPe::core().build();
    let mut image = Image::open(&bytes).unwrap();
    image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).unwrap();
    let [Change::CoreReplaced { old, new, len }] = image.changes() else {
        panic!("{:?}", image.changes())
    };
    assert_eq!(
        (old.guid, old.name.as_deref(), *new, *len),
        (OLD_CORE, Some("DxeCore"), guids::PATINA_DXE_CORE, core.len())
    );

    let written = image.finish().unwrap();
    assert_eq!(written.len(), bytes.len());
    assert_eq!(written[MAIN_LEN..], bytes[MAIN_LEN..]);
    let mut expected = dxe_of(&bytes);
    expected[0] = (guids::PATINA_DXE_CORE, core);
    assert_eq!(dxe_of(&written), expected);
    Image::open(&written).unwrap();
}

#[test]
fn a_dropped_file_is_gone() {
    let bytes = image();
    let mut image = Image::open(&bytes).unwrap();
    assert_eq!(image.drop_files(|file| file.guid == guids::CPU_DXE), 1);
    assert_eq!(
        image.changes()[0].to_string(),
        format!("dropped CpuDxe ({})", guids::CPU_DXE)
    );
    let mut expected = dxe_of(&bytes);
    expected.remove(1);
    assert_eq!(dxe_of(&image.finish().unwrap()), expected);
}

#[test]
fn an_absent_file_is_not_an_error_and_a_file_that_is_there_twice_is_dropped_twice() {
    let pe = || TinyPe::driver().build();
    let mut image = image_with(ffs_file(
        guids::CPU_DXE_FOR_ONE,
        file_type::DRIVER,
        pe(),
        "CpuDxe",
    ));
    assert_eq!(image.drop_files(|file| file.is("TlsDxe")), 0);
    assert_eq!(image.changes(), []);
    assert_eq!(image.drop_files(|file| file.is("CpuDxe")), 2);
    assert_eq!(image.drop_files(|file| file.is("CpuDxe")), 0);
    let left = dxe_of(&image.finish().unwrap());
    assert_eq!(left.len(), dxe_files().len() - 1);

    let mut image = image_with(ffs_file(guids::CPU_DXE, file_type::DRIVER, pe(), "CpuDxe again"));
    assert_eq!(image.drop_files(|file| file.is(&guids::CPU_DXE.to_string())), 2);
}

#[test]
fn image_without_a_core_is_not_written() {
    let mut image = Image::open(&image()).unwrap();
    assert_eq!(image.drop_files(|file| file.guid == OLD_CORE), 1);
    let refused = image.finish().unwrap_err();
    assert!(matches!(refused, ImageError::Cores { found: 0 }), "{refused:?}");
}

#[test]
fn a_variable_store_before_the_code_stays() {
    let code = image();
    let mut store = vec![0x5a; 0x2000];
    store[16..32].copy_from_slice(guids::VARIABLE_STORE.as_bytes());
    store[32..40].copy_from_slice(&0x2000_u64.to_le_bytes());
    store[40..44].copy_from_slice(b"_FVH");
    let bytes = [&store[..], &code].concat();
    assert_eq!(Image::open(&bytes).unwrap().finish().unwrap(), bytes);
    let mut image = Image::open(&bytes).unwrap();
    image.drop_files(|file| file.is("CpuDxe"));
    let written = image.finish().unwrap();
    assert_eq!(written.len(), bytes.len());
    assert_eq!(written[..0x2000], store);
    let mut alone = Image::open(&code).unwrap();
    alone.drop_files(|file| file.is("CpuDxe"));
    assert_eq!(written[0x2000..], alone.finish().unwrap());

    for wrong in [0x1fff, 0x2001, u64::try_from(bytes.len()).unwrap(), u64::MAX] {
        let mut bytes = bytes.clone();
        bytes[32..40].copy_from_slice(&wrong.to_le_bytes());
        assert!(Image::open(&bytes).is_err(), "{wrong:#x}");
    }
}

#[test]
fn content_that_no_flash_image_has_is_refused_before_it_is_decoded() {
    let section = lzma_section(b"short");
    let mut stream = section.try_content_as_slice().unwrap().to_vec();
    stream[5..13].copy_from_slice(&0x400_0001_u64.to_le_bytes());
    let section = Section::new_from_header_with_data(section.header().clone(), stream).unwrap();
    let refused = Image::open(&image_of(vec![section])).map(|_| ());
    assert!(
        matches!(
            refused,
            Err(ImageError::PayloadTooLarge {
                claimed: 0x400_0001,
                limit: 0x400_0000,
                ..
            })
        ),
        "{refused:?}"
    );
}

/// The image with one more driver in DXEFV.
fn image_with(file: File) -> Image {
    let files = dxe_files().into_iter().chain([file]).collect();
    Image::open(&image_of(vec![lzma_section(&sections(&payload(files)))])).unwrap()
}

#[test]
fn an_ambiguous_choice_changes_nothing() {
    let pe = || TinyPe::driver().build();
    let core = TinyPe::core().build();
    let mut image = image_with(ffs_file(PEI_CORE, file_type::DXE_CORE, pe(), "DxeCore again"));
    let refused = image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).map(|_| ());
    assert!(
        matches!(refused, Err(ImageError::Cores { found: 2 })),
        "{refused:?}"
    );
    assert_eq!(image.changes(), []);

    let taken = ffs_file(guids::PATINA_DXE_CORE, file_type::DRIVER, pe(), "Squatter");
    let mut image = image_with(taken);
    let refused = image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).map(|_| ());
    assert!(
        matches!(&refused, Err(ImageError::NameTaken { file }) if file.name.as_deref() == Some("Squatter")),
        "{refused:?}"
    );
    assert_eq!(image.changes(), []);
    // The core may keep its own name.
    image.replace_dxe_core(&core, OLD_CORE).unwrap();
}

#[test]
fn drivers_are_flattened_and_the_core_is_not() {
    let bytes = image();
    let mut image = Image::open(&bytes).unwrap();
    image.flatten_drivers().unwrap();
    let moved: Vec<_> = image
        .changes()
        .iter()
        .map(|change| match change {
            Change::Flattened {
                file,
                to,
                resources_moved,
                ..
            } => (file.guid, *to, *resources_moved),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(moved, [(guids::CPU_DXE, 0x1000, false), (OTHER, 0x2000, true)]);

    let written = image.finish().unwrap();
    let (old, new) = (dxe_of(&bytes), dxe_of(&written));
    assert_eq!(new[0], old[0]);
    assert_eq!(
        new[1].1,
        ovmf_image::pe::flatten(&old[1].1).unwrap().unwrap().bytes
    );

    let mut again = Image::open(&written).unwrap();
    assert_eq!(again.flatten_drivers().unwrap().changes(), []);
}

#[test]
fn a_driver_that_cannot_be_flattened_is_named() {
    let mut files = dxe_files();
    files.push(ffs_file(PEI_CORE, file_type::DRIVER, b"MZ".to_vec(), "Broken"));
    let mut image = Image::open(&image_of(vec![lzma_section(&sections(&payload(files)))])).unwrap();
    let refused = image.flatten_drivers().map(|_| ());
    let Err(ImageError::Driver {
        file,
        cause: PeError::Parse(_),
    }) = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(file.name.as_deref(), Some("Broken"));
}

#[test]
fn a_driver_without_a_single_pe32_section_is_refused() {
    for (sections_of_file, number) in [(Vec::new(), 0), (vec![leaf(raw_type::PE32, vec![0; 4]); 2], 2)] {
        let mut file = File::new(OTHER, file_type::DRIVER);
        *file.sections_mut() = sections_of_file;
        let mut files = dxe_files();
        files.push(file);
        let mut image = Image::open(&image_of(vec![lzma_section(&sections(&payload(files)))])).unwrap();
        let refused = image.flatten_drivers().map(|_| ());
        assert!(
            matches!(refused, Err(ImageError::PeSections { found, .. }) if found == number),
            "{refused:?}"
        );
    }
    let mut file = File::new(OTHER, file_type::DRIVER);
    *file.sections_mut() = vec![leaf(raw_type::TE, vec![0; 4])];
    let mut image = Image::open(&image_of(vec![lzma_section(&sections(&payload(
        dxe_files().into_iter().chain([file]).collect(),
    )))]))
    .unwrap();
    let refused = image.flatten_drivers().map(|_| ());
    assert!(
        matches!(
            refused,
            Err(ImageError::UnsupportedSection {
                section_type: raw_type::TE,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_file_that_is_not_a_core_is_refused() {
    let mut image = Image::open(&image()).unwrap();
    let refused = image
        .replace_dxe_core(&TinyPe::driver().build(), guids::PATINA_DXE_CORE)
        .map(|_| ());
    assert!(matches!(
        refused,
        Err(ImageError::Core(PeError::Alignment { .. }))
    ));
    assert_eq!(image.changes(), []);
}

#[test]
fn a_core_too_large_for_dxefv_is_refused() {
    let mut core = TinyPe::core().build();
    core.resize(DXE_LEN, 0);
    let mut image = Image::open(&image()).unwrap();
    image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).unwrap();
    let refused = image.finish();
    assert!(
        matches!(refused, Err(ImageError::TooLarge { volume: "DXEFV", capacity: DXE_LEN, needed }) if needed > DXE_LEN),
        "{refused:?}"
    );
}

#[test]
fn a_core_that_does_not_compress_enough_is_refused() {
    let mut files = dxe_files();
    // The main volume is nearly full of bytes that no encoder makes smaller.
    let mut state = 1u64;
    let noise = (0..0x7000).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let mut file = File::new(OTHER, file_type::FREEFORM);
    *file.sections_mut() = vec![leaf(raw_type::RAW, noise.collect())];
    files.push(file);
    let mut payload = payload(dxe_files());
    payload[3] = leaf(raw_type::FIRMWARE_VOLUME_IMAGE, volume(4 * DXE_LEN, files));
    let bytes = image_of(vec![lzma_section(&sections(&payload))]);

    let mut core = TinyPe::core().build();
    core.extend((0..0x4000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()));
    let mut image = Image::open(&bytes).unwrap();
    image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).unwrap();
    let refused = image.finish();
    assert!(
        matches!(refused, Err(ImageError::TooLarge { volume: "FVMAIN_COMPACT", capacity: MAIN_LEN, needed }) if needed > MAIN_LEN),
        "{refused:?}"
    );
}

#[test]
fn an_image_cut_anywhere_is_refused() {
    let bytes = image();
    let lens = (0..bytes.len()).step_by(251).chain([
        1,
        55,
        56,
        72,
        MAIN_LEN - 1,
        MAIN_LEN,
        MAIN_LEN + 1,
        bytes.len() - 1,
    ]);
    for len in lens {
        let refused = refused(&bytes[..len]);
        assert!(
            matches!(refused, ImageError::Volume { .. } | ImageError::Length { .. }),
            "{len} bytes: {refused}"
        );
    }
}

#[test]
fn bytes_behind_the_image_are_refused() {
    let mut bytes = image();
    bytes.push(0xff);
    let refused = refused(&bytes);
    assert!(
        matches!(
            refused,
            ImageError::Length {
                what: "SECFV",
                claimed: 0x1000,
                available: 0x1001
            }
        ),
        "{refused}"
    );
}

#[test]
fn a_wrong_signature_is_refused() {
    for (at, name) in [(40, "FVMAIN_COMPACT"), (MAIN_LEN + 40, "SECFV")] {
        let mut bytes = image();
        assert_eq!(&bytes[at..at + 4], b"_FVH");
        bytes[at] ^= 1;
        let refused = refused(&bytes);
        assert!(
            matches!(refused, ImageError::Volume { volume, .. } if volume == name),
            "{refused}"
        );
    }
}

#[test]
fn free_space_that_is_not_free_is_refused() {
    let mut bytes = image();
    bytes[MAIN_LEN - 1] = 0;
    let refused = refused(&bytes);
    let expected = MAIN_LEN - 1;
    assert!(
        matches!(refused, ImageError::NotExact { what: "FVMAIN_COMPACT", offset, .. } if offset == expected),
        "{refused}"
    );
}

#[test]
fn files_that_are_not_aligned_like_they_say_do_not_blow_the_image_up() {
    const FILES: usize = 4000;
    let files = (0..FILES).map(|_| {
        let mut file = File::new(OTHER, file_type::RAW);
        *file.sections_mut() = vec![leaf(raw_type::RAW, vec![0; 4])];
        file
    });
    let mut bytes = volume(0x4_0000, files.collect());
    let headers: Vec<usize> = (72..bytes.len() - 24)
        .step_by(8)
        .filter(|at| bytes[*at..].starts_with(OTHER.as_bytes()))
        .collect();
    assert_eq!(headers.len(), FILES);
    for at in headers {
        // 8 MiB. The header's checksum is the byte behind the name.
        let old = bytes[at + 19];
        bytes[at + 19] = 6 << 3 | 2;
        bytes[at + 16] = bytes[at + 16].wrapping_add(old).wrapping_sub(bytes[at + 19]);
    }
    bytes.extend(volume(0x1000, Vec::new()));
    assert!(matches!(refused(&bytes), ImageError::NotExact { offset: 72, .. }));
}

#[test]
fn a_corrupted_stream_is_refused() {
    let bytes = image();
    let stream_len = image_stream_len(&bytes);
    // Not touched: the size of the dictionary (bytes 1 to 4), for which a larger value means the
    // same, see below; the last bytes, some of whose bits only flush the range coder.
    for at in [0].into_iter().chain(5..stream_len - 8) {
        let mut bytes = bytes.clone();
        bytes[STREAM_AT + at] ^= 0x10;
        assert!(Image::open(&bytes).is_err(), "byte {at} of {stream_len}");
    }
}

#[test]
fn a_corrupted_dictionary_size_is_refused_or_harmless() {
    let core = TinyPe::core().build();
    for (at, bit) in (1..5).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bytes = image();
        bytes[STREAM_AT + at] ^= 1 << bit;
        let dictionary = &bytes[STREAM_AT + 1..STREAM_AT + 5];
        let dictionary = u32::from_le_bytes(dictionary.try_into().unwrap());
        match Image::open(&bytes) {
            Ok(mut image) => {
                assert!((1 << 12..=1 << 26).contains(&dictionary), "{dictionary:#x}");
                image.replace_dxe_core(&core, guids::PATINA_DXE_CORE).unwrap();
                let written = image.finish().unwrap();
                assert_eq!(dxe_of(&written)[0].1, core);
            }
            Err(ImageError::LzmaHeader { dictionary_len, .. }) => {
                assert_eq!(dictionary_len, dictionary);
                assert!(!(1 << 12..=1 << 26).contains(&dictionary), "{dictionary:#x}");
            }
            Err(other) => panic!("{dictionary:#x}: {other}"),
        }
    }
}

fn image_stream_len(bytes: &[u8]) -> usize {
    let main = VolumeRef::new(bytes).unwrap();
    let section = &main.files().next().unwrap().unwrap().sections().unwrap()[0];
    let stream = section.try_content_as_slice().unwrap();
    assert_eq!(&bytes[STREAM_AT..][..stream.len()], stream);
    stream.len()
}

#[test]
fn a_stream_that_ends_early_is_refused() {
    let content = sections(&payload(dxe_files()));
    let whole = lzma_section(&content);
    let stream = whole.try_content_as_slice().unwrap();
    for len in [0, 5, 12, 13, 20, stream.len() / 2] {
        let mut header = whole.header().clone();
        header.set_content_size(len).unwrap();
        let cut = Section::new_from_header_with_data(header, stream[..len].to_vec()).unwrap();
        let refused = refused(&image_of(vec![cut]));
        assert!(
            matches!(
                refused,
                ImageError::LzmaHeader { .. } | ImageError::Decompress { .. }
            ),
            "{len} bytes: {refused}"
        );
    }
}

#[test]
fn an_image_without_a_dxe_core_is_refused() {
    let mut files = dxe_files();
    files.remove(0);
    let refused = refused(&image_of(vec![lzma_section(&sections(&payload(files)))]));
    assert!(
        matches!(refused, ImageError::DxeVolumes { found: 0 }),
        "{refused}"
    );
}

#[test]
fn an_image_with_two_dxe_volumes_is_refused() {
    let mut payload = payload(dxe_files());
    payload.push(payload[3].clone());
    let refused = refused(&image_of(vec![lzma_section(&sections(&payload))]));
    assert!(
        matches!(refused, ImageError::DxeVolumes { found: 2 }),
        "{refused}"
    );
}

#[test]
fn an_image_with_no_or_several_payloads_is_refused() {
    let lzma = lzma_section(&sections(&payload(dxe_files())));
    for number in [0, 2] {
        let refused = refused(&image_of(vec![lzma.clone(); number]));
        assert!(
            matches!(refused, ImageError::PayloadSections { found } if found == number),
            "{refused}"
        );
    }
}

#[test]
fn a_file_of_another_image_is_taken_as_it_is() {
    let (ours, theirs) = (image(), image());
    let mut image = Image::open(&ours).unwrap();
    let other = Image::open(&theirs).unwrap();
    let error = image.take_file(&other, OTHER).err().unwrap();
    assert!(
        matches!(error, ImageError::NameTaken { ref file } if file.guid == OTHER),
        "{error}"
    );
    let absent = image.take_file(&other, PEI_CORE).err().unwrap();
    assert!(
        matches!(absent, ImageError::NoFileToTake { found: 0, .. }),
        "{absent}"
    );
    assert_eq!(image.changes(), []);
    image.drop_files(|file| file.guid == OTHER);
    image.take_file(&other, OTHER).unwrap();
    assert_eq!(
        image.changes()[1].to_string(),
        format!("took LogoDxe ({OTHER}) from another image")
    );
    assert_eq!(dxe_of(&image.finish().unwrap()), dxe_of(&theirs));
}

#[test]
fn a_runtime_driver_is_added_with_a_dependency_that_holds() {
    let bytes = image();
    let driver = TinyPe {
        subsystem: object::pe::IMAGE_SUBSYSTEM_EFI_RUNTIME_DRIVER.0,
        ..TinyPe::core()
    }
    .build();
    let mut image = Image::open(&bytes).unwrap();
    // An image that is not a runtime driver, or cannot be protected, is refused.
    for unfit in [TinyPe::core().build(), TinyPe::driver().build(), vec![0; 4096]] {
        let error = image.add_runtime_driver(PAYLOAD_FILE, &unfit).err().unwrap();
        assert!(matches!(error, ImageError::RuntimeDriver(_)), "{error}");
    }
    let error = image.add_runtime_driver(OTHER, &driver).err().unwrap();
    assert!(matches!(error, ImageError::NameTaken { .. }), "{error}");
    assert_eq!(image.changes(), []);
    image.add_runtime_driver(PAYLOAD_FILE, &driver).unwrap();
    let written = image.finish().unwrap();
    let files = dxe_of(&written);
    // The first section: TRUE, END.
    assert_eq!(files[files.len() - 1], (PAYLOAD_FILE, vec![0x06, 0x08]));
    assert_eq!(files.len(), dxe_files().len() + 1);
    Image::open(&written).unwrap();
}
