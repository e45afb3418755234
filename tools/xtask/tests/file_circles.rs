//! No file of a shipped crate imports, directly or indirectly, a file that imports it. The same
//! holds for the top modules of a crate.
//!
//! What counts as an import of a file: a `use` that is not a re-export, a path in code, and a call
//! of a method that only an `impl` block in that file has, for a type of another file. A `mod` and
//! a re-export do not count, so that a module may present what its files have. Names are followed
//! through re-exports to the file that defines them. Tests, and imports for documentation, are left
//! out.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "this is a test: what cannot be read fails it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, ExprMethodCall, ImplItem, Item, ItemImpl, ItemUse, Macro, Type, UseTree, Visibility,
};

/// The path of a module inside its crate, or of a name.
type Names = Vec<String>;

/// A module, in a separate file or not.
#[derive(Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// What `use` brings in, by the name that it has here.
    aliases: BTreeMap<String, Names>,
    /// The modules of `use ...::*`.
    globs: Vec<Names>,
    /// Paths in code and in imports.
    used: BTreeSet<Names>,
    /// Methods that are called.
    calls: BTreeSet<String>,
    /// Methods in `impl` blocks for a type, by the type's path.
    methods: Vec<(Names, String)>,
}

/// The modules of a crate, by their paths.
type Modules = BTreeMap<Names, Module>;

/// Whether it is compiled for tests or documentation alone.
fn is_left_out(attributes: &[Attribute]) -> bool {
    let mut cfgs = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("cfg"));
    cfgs.any(|cfg| {
        let condition = cfg.meta.require_list().unwrap().tokens.to_string();
        ["test", "doc", "doctest"].contains(&condition.as_str())
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn names(path: &syn::Path) -> Names {
    path.segments
        .iter()
        .map(|segment| segment.ident.to_string())
        .collect()
}

/// Collects the paths and the calls of code.
impl Visit<'_> for Module {
    /// `pub(super)` uses nothing.
    fn visit_visibility(&mut self, _: &Visibility) {}

    fn visit_path(&mut self, path: &syn::Path) {
        if path.leading_colon.is_none() {
            self.used.insert(names(path));
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &ExprMethodCall) {
        self.calls.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr(&mut self, expression: &Expr) {
        if let Expr::Path(path) = expression
            && let [.., of, method] = &*names(&path.path)
            && of.starts_with(char::is_uppercase)
        {
            self.calls.insert(method.clone());
        }
        visit::visit_expr(self, expression);
    }

    /// The arguments of most macros are expressions.
    fn visit_macro(&mut self, called: &Macro) {
        let arguments =
            called.parse_body_with(syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated);
        if let Ok(arguments) = arguments {
            arguments.iter().for_each(|argument| self.visit_expr(argument));
        }
    }

    fn visit_impl_item(&mut self, item: &ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => return,
        };
        if !is_left_out(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_impl(&mut self, block: &ItemImpl) {
        if let (None, Type::Path(of)) = (&block.trait_, &*block.self_ty) {
            for item in &block.items {
                if let ImplItem::Fn(method) = item
                    && !is_left_out(&method.attrs)
                {
                    self.methods.push((names(&of.path), method.sig.ident.to_string()));
                }
            }
        }
        visit::visit_item_impl(self, block);
    }
}

impl Module {
    fn import(&mut self, item: &ItemUse) {
        let is_import = matches!(item.vis, Visibility::Inherited);
        self.import_tree(&item.tree, vec![], is_import);
    }

    fn import_tree(&mut self, tree: &UseTree, mut path: Names, is_import: bool) {
        let (name, alias) = match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                return self.import_tree(&part.tree, path, is_import);
            }
            UseTree::Group(group) => {
                let each = group.items.iter();
                return each.for_each(|tree| self.import_tree(tree, path.clone(), is_import));
            }
            UseTree::Glob(_) => {
                if is_import {
                    self.used.insert(path.clone());
                }
                return self.globs.push(path);
            }
            UseTree::Name(name) => (name.ident.to_string(), name.ident.to_string()),
            UseTree::Rename(renamed) => (renamed.ident.to_string(), renamed.rename.to_string()),
        };
        let alias = match (&*name, path.last()) {
            ("self", Some(module)) if alias == "self" => module.clone(),
            _ => alias,
        };
        if name != "self" {
            path.push(name);
        }
        if is_import {
            self.used.insert(path.clone());
        }
        self.aliases.insert(alias, path);
    }
}

/// Reads a module, and those in it. `read` returns the text of a file.
fn read_module(
    modules: &mut Modules,
    read: &dyn Fn(&str) -> Option<String>,
    path: &[String],
    file: &str,
    items: Vec<Item>,
) {
    let mut module = Module {
        file: file.to_owned(),
        ..Module::default()
    };
    for item in items {
        if is_left_out(attributes(&item)) {
            continue;
        }
        match item {
            Item::Mod(child) => {
                let name = child.ident.to_string();
                let child_path = [path, std::slice::from_ref(&name)].concat();
                if let Some((_, items)) = child.content {
                    read_module(modules, read, &child_path, file, items);
                } else {
                    let stem = child_path.join("/");
                    let places = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
                    let found = places.into_iter().find_map(|place| Some((read(&place)?, place)));
                    let (text, place) = found.unwrap_or_else(|| panic!("{file}: no file for mod {name}"));
                    let items = syn::parse_file(&text).unwrap().items;
                    read_module(modules, read, &child_path, &place, items);
                }
                module.children.insert(name);
            }
            Item::Use(item) => module.import(&item),
            item => module.visit_item(&item),
        }
    }
    modules.insert(path.to_vec(), module);
}

/// The module whose file defines the name that `path` is for code in the module `from`; `None` if
/// it is of another crate.
fn definition(modules: &Modules, from: &[String], path: &[String], depth: u32) -> Option<Names> {
    assert!(depth < 50, "{path:?} in {from:?} has no end");
    let (first, rest) = path.split_first()?;
    let here = &modules[from];
    match &**first {
        "crate" => return definition_in(modules, &[], rest, depth),
        "self" => return definition_in(modules, from, rest, depth),
        "super" => return definition_in_parent(modules, from, rest, depth),
        _ => {}
    }
    if rest.is_empty() && here.children.contains(first) {
        // A local variable, or a module that is only named.
        return None;
    }
    let is_known = here.children.contains(first) || here.aliases.contains_key(first);
    is_known.then(|| definition_in(modules, from, path, depth))?
}

fn definition_in_parent(modules: &Modules, from: &[String], path: &[String], depth: u32) -> Option<Names> {
    let (_, parent) = from.split_last()?;
    match path.split_first() {
        Some((first, rest)) if first == "super" => definition_in_parent(modules, parent, rest, depth),
        _ => definition_in(modules, parent, path, depth),
    }
}

/// Like [`definition`], for a name of the module `module`.
fn definition_in(modules: &Modules, module: &[String], path: &[String], depth: u32) -> Option<Names> {
    let Some((first, rest)) = path.split_first() else {
        return Some(module.to_vec());
    };
    let here = &modules[module];
    if here.children.contains(first) {
        return definition_in(
            modules,
            &[module, std::slice::from_ref(first)].concat(),
            rest,
            depth,
        );
    }
    if let Some(alias) = here.aliases.get(first) {
        // `use name;` of a crate: not a name of this crate.
        if alias.first() == Some(first) && alias.len() == 1 {
            return None;
        }
        return definition(modules, module, alias, depth + 1);
    }
    let in_glob = |glob: &Names| {
        let from = definition(modules, module, glob, depth + 1)?;
        let other = &modules[&from];
        let is_there = other.children.contains(first) || other.aliases.contains_key(first);
        is_there.then(|| definition_in(modules, &from, path, depth + 1))?
    };
    Some(
        here.globs
            .iter()
            .find_map(in_glob)
            .unwrap_or_else(|| module.to_vec()),
    )
}

/// Which node imports which, and by what name.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// The graph of a crate's files, and that of its top modules.
fn graphs(modules: &Modules) -> [Graph; 2] {
    let mut edges = Vec::new();
    // Methods in `impl` blocks for a type of another file; `None` if two files have one of this
    // name.
    let mut elsewhere: BTreeMap<&str, Option<&Names>> = BTreeMap::new();
    for (path, module) in modules {
        for (of, method) in &module.methods {
            let is_own =
                definition(modules, path, of, 0).is_none_or(|home| modules[&home].file == module.file);
            let found = (!is_own).then_some(path);
            let entry = elsewhere.entry(method).or_insert(found);
            if *entry != found {
                *entry = None;
            }
        }
    }
    for (path, module) in modules {
        for used in &module.used {
            if let Some(to) = definition(modules, path, used, 0) {
                edges.push((path, to, used.join("::")));
            }
        }
        for call in &module.calls {
            if let Some(Some(to)) = elsewhere.get(&**call) {
                edges.push((path, (*to).clone(), format!(".{call}()")));
            }
        }
    }
    let mut graphs = [Graph::new(), Graph::new()];
    for (from, to, by) in edges {
        let files = [&modules[from].file, &modules[&to].file].map(Some);
        // Code in the crate's root file is not in a top module.
        let tops = [from.first(), to.first()];
        for (graph, ends) in graphs.iter_mut().zip([files, tops]) {
            if let [Some(from), Some(to)] = ends
                && from != to
            {
                graph
                    .entry(from.clone())
                    .or_default()
                    .insert(to.clone(), by.clone());
            }
        }
    }
    graphs
}

/// A circle that goes through `start`, with the names that close it.
fn circle(graph: &Graph, start: &str) -> Option<String> {
    let mut from = BTreeMap::from([(start, "")]);
    let mut queue = std::collections::VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for to in graph.get(node).into_iter().flat_map(BTreeMap::keys) {
            if to == start {
                let mut way = vec![start, node];
                while let Some(before) = way
                    .last()
                    .and_then(|last| from.get(*last))
                    .filter(|before| !before.is_empty())
                {
                    way.push(before);
                }
                way.reverse();
                let step =
                    |step: &[&str]| format!("{} uses {} of {}", step[0], graph[step[0]][step[1]], step[1]);
                return Some(way.windows(2).map(step).collect::<Vec<_>>().join("\n    "));
            }
            if !from.contains_key(&**to) {
                from.insert(to, node);
                queue.push_back(to);
            }
        }
    }
    None
}

/// The circles of a crate, each once.
fn circles(read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut modules = Modules::new();
    let items = syn::parse_file(&read("lib.rs").unwrap()).unwrap().items;
    read_module(&mut modules, read, &[], "lib.rs", items);
    let mut found = BTreeMap::new();
    for graph in graphs(&modules) {
        for start in graph.keys() {
            if let Some(circle) = circle(&graph, start) {
                let mut members: Vec<_> = circle.lines().map(|line| line.trim().to_owned()).collect();
                members.sort();
                found.entry(members).or_insert(circle);
            }
        }
    }
    found.into_values().collect()
}

#[test]
fn files_of_shipped_crates_have_no_circle() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .join("crates");
    let mut read_crates = 0;
    let mut found = Vec::new();
    for folder in fs::read_dir(crates).unwrap() {
        let source = folder.unwrap().path().join("src");
        let of_crate = circles(&|file| fs::read_to_string(source.join(file)).ok());
        let name = source.display().to_string();
        found.extend(
            of_crate
                .into_iter()
                .map(|circle| format!("{name}:\n    {circle}")),
        );
        read_crates += 1;
    }
    assert!(read_crates >= 3);
    assert!(found.is_empty(), "{} circles:\n{}", found.len(), found.join("\n"));
}

#[test]
fn circles_are_found_and_re_exports_are_not_circles() {
    let of = |files: &[(&str, &str)]| {
        let files: BTreeMap<_, _> = files.iter().copied().collect();
        circles(&|file| files.get(file).map(|text| (*text).to_owned()))
    };
    let clean = [
        ("lib.rs", "mod a; mod b; pub use a::A;"),
        (
            "a.rs",
            "mod inner; pub use inner::Inner; use crate::b::B; pub struct A(B);",
        ),
        (
            "a/inner.rs",
            "pub struct Inner; #[cfg(test)] mod tests { use crate::A; }",
        ),
        ("b.rs", "pub struct B;"),
    ];
    assert_eq!(of(&clean), [""; 0]);
    let with = |file, text| {
        let mut files = clean.to_vec();
        files.retain(|(name, _)| *name != file);
        files.push((file, text));
        of(&files)
    };
    // Through a re-export; in the middle of code; to the parent, which uses its own child; through
    // a method.
    for (file, text) in [
        ("b.rs", "use crate::A; pub struct B;"),
        ("b.rs", "pub struct B; fn f() { let _ = vec![crate::A]; }"),
        ("a/inner.rs", "use super::A; pub struct Inner;"),
        (
            "b.rs",
            "pub struct B; impl crate::A { pub fn only_here(&self) {} }",
        ),
    ] {
        let parent =
            "mod inner; pub use inner::Inner; use crate::b::B; pub struct A(B); impl A { fn f(i: Inner) {} }";
        let mut files = clean.to_vec();
        files.retain(|(name, _)| ![file, "a.rs"].contains(name));
        files.extend([(file, text), ("a.rs", parent)]);
        assert_eq!(of(&files).len(), if file == "b.rs" { 2 } else { 1 }, "{text}");
    }
    assert_eq!(with("b.rs", "pub use crate::A; pub struct B;"), [""; 0]);
}
