//! The source as a graph: its files, the types that each defines, and which file imports from which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::{Item, UseTree, Visibility};

/// A module's path from the crate's root: `["plan", "delta"]` for `src/plan/delta.rs`.
pub type ModulePath = Vec<String>;

/// What one file imports and defines, without its tests.
#[derive(Default)]
pub struct File {
    /// The paths of its `use` lines, each with the name that it brings into scope.
    imports: Vec<Import>,
    /// Names of its structs, enums, traits and type aliases; not those inside functions.
    pub types: Vec<String>,
}

struct Import {
    path: ModulePath,
    name: String,
    /// `pub use`: callers reach the item through this file, which does not use it.
    is_reexport: bool,
}

/// All files of the library that are no tests.
pub struct Source {
    pub files: BTreeMap<ModulePath, File>,
}

impl Source {
    /// Parses every file below `src`.
    pub fn read() -> Source {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        read_folder(&root, &[], &mut files);
        Source { files }
    }

    /// Which files of its own module each file imports from.
    pub fn imports(&self) -> BTreeMap<&ModulePath, BTreeSet<&ModulePath>> {
        self.files
            .iter()
            .map(|(module, file)| {
                let used = file.imports.iter().filter(|import| !import.is_reexport);
                let targets = used.filter_map(|import| self.file_of(module, &import.path, 0));
                (module, targets.filter(|target| *target != module && target[0] == module[0]).collect())
            })
            .collect()
    }

    /// The file that defines what `path`, as written in `module`, names. A name that a file re-exports or
    /// imports is looked up where it comes from.
    fn file_of(&self, module: &[String], path: &[String], depth: usize) -> Option<&ModulePath> {
        let absolute = self.absolute(module, path)?;
        let n = (1..=absolute.len()).rev().find(|n| self.files.contains_key(&absolute[..*n]))?;
        let (found, file) = self.files.get_key_value(&absolute[..n])?;
        let imported =
            absolute.get(n).and_then(|name| file.imports.iter().find(|import| import.name == *name));
        match imported.filter(|_| depth < 8) {
            Some(import) => self.file_of(found, &import.path, depth + 1).or(Some(found)),
            None => Some(found),
        }
    }

    /// `path` from the crate's root; `None` for another crate's.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<ModulePath> {
        let (base, rest): (&[String], &[String]) = match path.first().map(String::as_str) {
            Some("crate") => (&[], &path[1..]),
            Some("self") => (module, &path[1..]),
            Some("super") => {
                let n = path.iter().take_while(|part| *part == "super").count();
                (&module[..module.len().checked_sub(n)?], &path[n..])
            }
            Some(first) => {
                let child: ModulePath = module.iter().chain([&first.to_owned()]).cloned().collect();
                self.files.contains_key(&child).then_some(())?;
                (module, path)
            }
            None => return None,
        };
        Some(base.iter().chain(rest).cloned().collect())
    }
}

/// Groups of files that import from each other in a circle.
pub fn circles(imports: &BTreeMap<&ModulePath, BTreeSet<&ModulePath>>) -> Vec<Vec<String>> {
    let reachable = |from: &ModulePath| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = open.pop() {
            for next in imports.get(&file).into_iter().flatten() {
                if seen.insert((*next).clone()) {
                    open.push((*next).clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&ModulePath, _> = imports.keys().map(|file| (*file, reachable(file))).collect();
    let mut circles = BTreeSet::new();
    for (file, reaches) in reached.iter().filter(|(file, reaches)| reaches.contains(**file)) {
        let members = reaches.iter().filter(|other| reached[*other].contains(*file));
        circles.insert(members.map(|member| member.join("/")).collect::<Vec<_>>());
    }
    circles.into_iter().collect()
}

fn read_folder(folder: &Path, above: &[String], files: &mut BTreeMap<ModulePath, File>) {
    for entry in std::fs::read_dir(folder).expect("the source") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        // Test modules look at everything; they are no part of the structure.
        if name.contains("tests") || name == "fake" {
            continue;
        }
        let module: ModulePath = above.iter().cloned().chain([name]).collect();
        if path.is_dir() {
            read_folder(&path, &module, files);
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("the source");
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut file = File::default();
        add_items(parsed.items, &mut file);
        files.insert(module, file);
    }
}

fn add_items(items: Vec<Item>, file: &mut File) {
    for item in items {
        match item {
            Item::Use(import) => {
                let is_reexport = !matches!(import.vis, Visibility::Inherited);
                add_imports(&import.tree, Vec::new(), is_reexport, &mut file.imports);
            }
            Item::Struct(item) => file.types.push(item.ident.to_string()),
            Item::Enum(item) => file.types.push(item.ident.to_string()),
            Item::Trait(item) => file.types.push(item.ident.to_string()),
            Item::Type(item) => file.types.push(item.ident.to_string()),
            Item::Mod(item) if item.ident != "tests" => {
                add_items(item.content.map(|(_, items)| items).unwrap_or_default(), file);
            }
            _ => {}
        }
    }
}

fn add_imports(tree: &UseTree, mut path: ModulePath, is_reexport: bool, imports: &mut Vec<Import>) {
    match tree {
        UseTree::Path(part) => {
            path.push(part.ident.to_string());
            add_imports(&part.tree, path, is_reexport, imports);
        }
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| add_imports(tree, path.clone(), is_reexport, imports));
        }
        UseTree::Name(name) if name.ident == "self" => {
            let name = path.last().cloned().unwrap_or_default();
            imports.push(Import { path, name, is_reexport });
        }
        UseTree::Name(name) => {
            path.push(name.ident.to_string());
            imports.push(Import { path, name: name.ident.to_string(), is_reexport });
        }
        UseTree::Rename(rename) => {
            path.push(rename.ident.to_string());
            imports.push(Import { path, name: rename.rename.to_string(), is_reexport });
        }
        UseTree::Glob(_) => imports.push(Import { path, name: String::new(), is_reexport }),
    }
}
