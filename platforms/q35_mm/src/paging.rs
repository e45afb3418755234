//! Puts the page tables into the image.

use q35_mm::page_tables::PageTables;

#[used]
#[unsafe(link_section = ".page_tables")]
static PAGE_TABLES: PageTables = PageTables::new();
