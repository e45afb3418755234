//! Puts the page tables into the image.

use mm_image::page_tables::PageTables;

#[used]
#[unsafe(link_section = ".page_tables")]
static PAGE_TABLES: PageTables = PageTables::new();
