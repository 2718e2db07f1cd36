//! `cargo xtask api`: the public items of each library, as a file that a review sees change.
//!
//! The compiler expands the macros of the library for Linux with all features (`-Zunpretty=expanded`). What is reachable from the
//! crate root is then printed without bodies, documentation and private fields, and formatted by rustfmt. Implementations that the
//! compiler makes (`Send`, `Sync`, `Unpin`) are not in the list.
#![expect(clippy::wildcard_enum_match_arm, reason = "the syntax has dozens of variants")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{
    Attribute, Expr, Fields, ImplItem, Item, ItemImpl, ItemMod, Meta, Signature, Stmt, TraitItem, Type, UseTree,
    Visibility,
};

use crate::{
    cargo::{Metadata, cargo},
    tidy::LIBRARIES,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Write the files instead of comparing them with the code.
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let (directory, target) = (root.join("docs/api"), Metadata::read(root)?.target_directory);
    let mut changed = Vec::new();
    for name in LIBRARIES {
        let listing = format(&list(&expand(root, &target, name)?).with_context(|| name.to_owned())?)?;
        let path = directory.join(name).with_extension("rs.txt");
        if options.write {
            fs::create_dir_all(&directory)?;
            fs::write(&path, &listing)?;
        } else if let Some(difference) = difference(&fs::read_to_string(&path).unwrap_or_default(), &listing) {
            eprintln!("{}:\n{difference}", path.display());
            changed.push(name);
        }
    }
    let advice = "the public API differs from docs/api; where that is meant, run `cargo xtask api --write`";
    ensure!(changed.is_empty(), "{}: {advice}", changed.join(", "));
    println!("api: {} libraries", LIBRARIES.len());
    Ok(())
}

/// Returns the source of a library in one piece, macros expanded.
fn expand(root: &Path, target: &Path, name: &str) -> Result<String> {
    // Only the library itself is compiled with the compiler's unstable option allowed, so that no dependency is built anew.
    let wrapper = target.join("unstable-rustc.sh");
    fs::create_dir_all(target)?;
    fs::write(&wrapper, "#!/bin/sh\nexec env RUSTC_BOOTSTRAP=1 \"$@\"\n")?;
    #[cfg(unix)]
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut command = cargo(root);
    command.args(["rustc", "--quiet", "--locked", "--lib", "--all-features", "--profile", "check", "-p", name]);
    // Another number each time, or cargo would find that there is nothing to do.
    let number = format!("-Cmetadata={}", std::process::id());
    command.args(["--", "-Zunpretty=expanded", &number]).env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
    crate::output(command.stderr(Stdio::inherit()))
}

/// Formats source that need not compile.
fn format(source: &str) -> Result<String> {
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--config", "max_width=120"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting rustfmt")?;
    child.stdin.take().context("rustfmt reads nothing")?.write_all(source.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "rustfmt does not accept the listing");
    Ok(String::from_utf8(out.stdout)?)
}

/// The lines that only one of two listings has; `None` if they are the same.
fn difference(old: &str, new: &str) -> Option<String> {
    let only = |in_this: &str, not_in: &str, sign: &str| {
        let known: BTreeSet<_> = not_in.lines().collect();
        let lines = in_this.lines().filter(|line| !known.contains(line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    (old != new).then(|| only(old, new, "-") + &only(new, old, "+"))
}

/// Prints the public items of a crate.
fn list(source: &str) -> Result<String> {
    let mut krate = Crate::default();
    krate.collect(syn::parse_file(source).context("the expanded source")?.items, &mut Vec::new());
    let mut listing = Listing { krate: &krate, exported: BTreeSet::new() };
    // Twice: the second time all names of exported types are known, which decide about implementations.
    listing.module(&[]);
    Ok(listing.module(&[]))
}

/// The path of a module in its crate.
type ModulePath = Vec<String>;

/// The items of a crate, by the path of their module.
#[derive(Default)]
struct Crate {
    items: BTreeMap<ModulePath, Vec<Item>>,
    impls: Vec<ItemImpl>,
    /// Types and traits that are defined in the crate.
    local: BTreeSet<String>,
}

impl Crate {
    fn collect(&mut self, items: Vec<Item>, path: &mut ModulePath) {
        self.items.entry(path.clone()).or_default();
        for item in items {
            match item {
                Item::Impl(mut item) => {
                    strip_impl(&mut item);
                    self.impls.push(item);
                }
                // Derive macros hide what they make in one.
                Item::Const(item) if item.ident == "_" => {
                    if let Expr::Block(block) = *item.expr {
                        let items = block.block.stmts.into_iter().filter_map(|stmt| match stmt {
                            Stmt::Item(item) => Some(item),
                            _ => None,
                        });
                        self.collect(items.filter(|item| matches!(item, Item::Impl(_))).collect(), path);
                    }
                }
                Item::Mod(ItemMod { ident, content: Some((_, inner)), vis, .. }) => {
                    path.push(ident.to_string());
                    self.collect(inner, path);
                    path.pop();
                    let declaration: ItemMod = syn::parse_quote!(#vis mod #ident;);
                    self.push(path, Item::Mod(declaration));
                }
                item => self.push(path, item),
            }
        }
    }

    fn push(&mut self, path: &ModulePath, item: Item) {
        if let Some((_, name)) = name_of(&item).filter(|_| is_type_or_trait(&item)) {
            self.local.insert(name);
        }
        self.items.entry(path.clone()).or_default().push(item);
    }

    fn find(&self, path: &[String], name: &str) -> Option<&Item> {
        self.items.get(path)?.iter().find(|item| name_of(item).is_some_and(|(_, found)| found == name))
    }
}

struct Listing<'a> {
    krate: &'a Crate,
    /// Names of types and traits that are reachable.
    exported: BTreeSet<String>,
}

impl Listing<'_> {
    /// Prints what is public in a module, sorted.
    fn module(&mut self, path: &[String]) -> String {
        let mut lines = BTreeSet::new();
        self.public(path, &mut lines);
        lines.into_iter().map(|(_, text)| text.trim_end().to_owned() + "\n\n").collect()
    }

    fn public(&mut self, path: &[String], lines: &mut BTreeSet<(String, String)>) {
        let krate = self.krate;
        for item in krate.items.get(path).into_iter().flatten() {
            match item {
                Item::Mod(module) if is_public(&module.vis) => {
                    let name = module.ident.to_string();
                    let text =
                        format!("pub mod {name} {{ {} }}", self.module(&[path, std::slice::from_ref(&name)].concat()));
                    lines.insert((name, text));
                }
                Item::Use(item) if is_public(&item.vis) => self.reexport(path, &mut Vec::new(), &item.tree, lines),
                item => {
                    if let Some((name, text)) = self.item(item, None) {
                        lines.insert((name, text));
                    }
                }
            }
        }
    }

    fn reexport(
        &mut self,
        module: &[String],
        prefix: &mut Vec<String>,
        tree: &UseTree,
        lines: &mut BTreeSet<(String, String)>,
    ) {
        let (name, renamed) = match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.reexport(module, prefix, &path.tree, lines);
                prefix.pop();
                return;
            }
            UseTree::Group(group) => return group.items.iter().for_each(|t| self.reexport(module, prefix, t, lines)),
            UseTree::Glob(_) => return self.public(&self.resolve(module, prefix), lines),
            UseTree::Name(name) => (name.ident.to_string(), None),
            UseTree::Rename(rename) => (rename.ident.to_string(), Some(rename.rename.to_string())),
        };
        let from = self.resolve(module, prefix);
        if let Some(item) = self.krate.find(&from, &name) {
            if let Some((name, text)) = self.item(item, renamed.as_deref()) {
                lines.insert((name, text));
            }
            return;
        }
        // Exported again from a module in between, or from another crate.
        let (mut inner, before) = (BTreeSet::new(), self.krate.items.contains_key(&from));
        if before && from != module {
            self.public(&from, &mut inner);
            inner.retain(|(found, _)| *found == name);
        }
        if inner.is_empty() {
            let path = prefix.iter().chain([&name]).cloned().collect::<Vec<_>>().join("::");
            inner.insert((name, format!("pub use {path};")));
        }
        lines.extend(inner);
    }

    /// The path of a module that a `use` in another one names.
    fn resolve(&self, module: &[String], names: &[String]) -> ModulePath {
        let mut path = module.to_vec();
        for (at, name) in names.iter().enumerate() {
            match name.as_str() {
                "crate" => path.clear(),
                "super" => drop(path.pop()),
                "self" => {}
                _ if at == 0 && !self.krate.items.contains_key(&[module, std::slice::from_ref(name)].concat()) => {
                    path = vec![name.clone()];
                }
                _ => path.push(name.clone()),
            }
        }
        path
    }

    /// Prints an item and, for a type, what is implemented for it.
    fn item(&mut self, item: &Item, renamed: Option<&str>) -> Option<(String, String)> {
        let (vis, name) = name_of(item)?;
        if !is_public(vis) {
            return None;
        }
        if is_type_or_trait(item) {
            self.exported.insert(name.clone());
        }
        let text = strip_item(item)?;
        let (implemented, impls) = match item {
            Item::Trait(_) => Default::default(),
            _ => self.impls(&name),
        };
        let implemented = if implemented.is_empty() { implemented } else { format!("#[implements({implemented})]\n") };
        let text = format!("{implemented}{text}\n{impls}");
        match renamed {
            Some(renamed) => Some((renamed.to_owned(), format!("pub use {name} as {renamed};\n{text}"))),
            None => Some((name, text)),
        }
    }

    /// What a type implements: the traits that need no more than their name, and the text of all other implementations, its own
    /// functions first.
    fn impls(&self, name: &str) -> (String, String) {
        let of_type = |item: &&ItemImpl| self_name(&item.self_ty).as_deref() == Some(name);
        let (mut own, mut named, mut traits) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for item in self.krate.impls.iter().filter(of_type) {
            let Some(trait_) = item.trait_.as_ref().and_then(|(path, ..)| path.segments.last()) else {
                own.extend((!item.items.is_empty()).then(|| item.to_token_stream().to_string()));
                continue;
            };
            let trait_name = trait_.ident.to_string();
            let is_private = self.krate.local.contains(&trait_name) && !self.exported.contains(&trait_name);
            if is_private || INTERNAL.contains(&trait_name.as_str()) {
                continue;
            }
            let has_bounds = item.generics.type_params().next().is_some() || item.generics.where_clause.is_some();
            if item.items.is_empty() && !has_bounds && matches!(*item.self_ty, Type::Path(_)) {
                let text = trait_.to_token_stream().to_string();
                named.insert(text.replace(" < ", "<").replace(" >", ">"));
            } else {
                traits.insert(item.to_token_stream().to_string());
            }
        }
        let text = own.into_iter().chain(traits).collect::<Vec<_>>().join("\n");
        (named.into_iter().collect::<Vec<_>>().join(", "), text)
    }
}

/// Traits that derive macros implement for the compiler.
const INTERNAL: [&str; 2] = ["StructuralPartialEq", "TrivialClone"];

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn is_type_or_trait(item: &Item) -> bool {
    matches!(item, Item::Struct(_) | Item::Enum(_) | Item::Union(_) | Item::Type(_) | Item::Trait(_))
}

/// The visibility and the name of an item. Modules and re-exports have none here.
fn name_of(item: &Item) -> Option<(&Visibility, String)> {
    let (vis, ident) = match item {
        Item::Const(item) => (&item.vis, &item.ident),
        Item::Enum(item) => (&item.vis, &item.ident),
        Item::Fn(item) => (&item.vis, &item.sig.ident),
        Item::Static(item) => (&item.vis, &item.ident),
        Item::Struct(item) => (&item.vis, &item.ident),
        Item::Trait(item) => (&item.vis, &item.ident),
        Item::Type(item) => (&item.vis, &item.ident),
        Item::Union(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    Some((vis, ident.to_string()))
}

/// The name of the type that something is implemented for.
fn self_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        Type::Reference(reference) => self_name(&reference.elem),
        _ => None,
    }
}

/// The attributes that a caller notices.
fn kept(attributes: &[Attribute]) -> Vec<&Attribute> {
    let is_kept = |attribute: &&Attribute| {
        let path = match &attribute.meta {
            Meta::Path(path) => path,
            Meta::List(list) => &list.path,
            Meta::NameValue(pair) => &pair.path,
        };
        ["non_exhaustive", "must_use", "deprecated"].iter().any(|name| path.is_ident(name))
    };
    attributes.iter().filter(is_kept).collect()
}

/// Prints an item without its body and its private fields.
fn strip_item(item: &Item) -> Option<String> {
    let tokens = match item {
        Item::Const(item) => {
            let (name, ty, attributes) = (&item.ident, &item.ty, kept(&item.attrs));
            quote!(#(#attributes)* pub const #name: #ty;)
        }
        Item::Static(item) => {
            let (name, ty, attributes) = (&item.ident, &item.ty, kept(&item.attrs));
            quote!(#(#attributes)* pub static #name: #ty;)
        }
        Item::Fn(item) => {
            let (sig, attributes) = (strip_signature(&item.sig), kept(&item.attrs));
            quote!(#(#attributes)* pub #sig;)
        }
        Item::Type(item) => {
            let (name, generics, ty) = (&item.ident, &item.generics, &item.ty);
            quote!(pub type #name #generics = #ty;)
        }
        Item::Struct(item) => {
            let (name, attributes) = (&item.ident, kept(&item.attrs));
            let (generics, clause) = (&item.generics, &item.generics.where_clause);
            match &item.fields {
                Fields::Named(fields) => {
                    let public = fields.named.iter().filter(|field| is_public(&field.vis));
                    let shown = public.clone().map(|field| {
                        let (name, ty) = (&field.ident, &field.ty);
                        quote!(pub #name: #ty)
                    });
                    let private = (public.count() < fields.named.len()).then(|| quote!(_private: _));
                    let all = shown.chain(private);
                    quote!(#(#attributes)* pub struct #name #generics #clause { #(#all,)* })
                }
                Fields::Unnamed(fields) => {
                    let all = fields.unnamed.iter().map(|field| {
                        let ty = &field.ty;
                        if is_public(&field.vis) { quote!(pub #ty) } else { quote!(_) }
                    });
                    quote!(#(#attributes)* pub struct #name #generics (#(#all),*) #clause;)
                }
                Fields::Unit => quote!(#(#attributes)* pub struct #name;),
            }
        }
        Item::Enum(item) => {
            let (name, attributes) = (&item.ident, kept(&item.attrs));
            let (generics, clause) = (&item.generics, &item.generics.where_clause);
            let variants = item.variants.iter().map(|variant| {
                let (name, attributes) = (&variant.ident, kept(&variant.attrs));
                let fields = variant.fields.iter().map(|field| {
                    let (name, ty) = (&field.ident, &field.ty);
                    if name.is_some() { quote!(#name: #ty) } else { quote!(#ty) }
                });
                match &variant.fields {
                    Fields::Named(_) => quote!(#(#attributes)* #name { #(#fields),* }),
                    Fields::Unnamed(_) => quote!(#(#attributes)* #name(#(#fields),*)),
                    Fields::Unit => quote!(#(#attributes)* #name),
                }
            });
            quote!(#(#attributes)* pub enum #name #generics #clause { #(#variants,)* })
        }
        Item::Trait(item) => {
            let (name, generics, bounds) = (&item.ident, &item.generics, &item.supertraits);
            let colon = (!bounds.is_empty()).then(|| quote!(:));
            let items = item.items.iter().map(|item| match item {
                TraitItem::Fn(item) => {
                    let sig = strip_signature(&item.sig);
                    let body = item.default.as_ref().map_or(quote!(;), |_| quote!({}));
                    quote!(#sig #body)
                }
                TraitItem::Const(item) => {
                    let (name, ty) = (&item.ident, &item.ty);
                    quote!(const #name: #ty;)
                }
                other => other.to_token_stream(),
            });
            quote!(pub trait #name #generics #colon #bounds { #(#items)* })
        }
        _ => return None,
    };
    Some(tokens.to_string())
}

/// Prints a signature without the `mut` of arguments, which concerns the body alone.
fn strip_signature(signature: &Signature) -> TokenStream {
    let without_mut = |arguments: Group| {
        let mut begins = true;
        let kept = arguments.stream().into_iter().filter(|token| {
            let is_mut = matches!(token, TokenTree::Ident(ident) if ident == "mut");
            let is_kept = !(begins && is_mut);
            begins = matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
            is_kept
        });
        Group::new(Delimiter::Parenthesis, kept.collect())
    };
    let tokens = signature.to_token_stream().into_iter().map(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Parenthesis => without_mut(group).into(),
        token => token,
    });
    tokens.collect()
}

/// Leaves of an implementation what a caller sees: public functions and constants, without bodies, and associated types.
fn strip_impl(item: &mut ItemImpl) {
    let is_trait = item.trait_.is_some();
    item.attrs.clear();
    for inner in std::mem::take(&mut item.items) {
        let tokens = match inner {
            ImplItem::Fn(inner) if !is_trait && is_public(&inner.vis) => {
                let (sig, attributes) = (strip_signature(&inner.sig), kept(&inner.attrs));
                quote!(#(#attributes)* pub #sig;)
            }
            ImplItem::Const(inner) if !is_trait && is_public(&inner.vis) => {
                let (name, ty) = (&inner.ident, &inner.ty);
                quote!(pub const #name: #ty;)
            }
            ImplItem::Type(inner) if is_trait => {
                let (name, generics, ty) = (&inner.ident, &inner.generics, &inner.ty);
                quote!(type #name #generics = #ty;)
            }
            _ => continue,
        };
        item.items.push(ImplItem::Verbatim(tokens));
    }
}

#[cfg(test)]
mod tests;
