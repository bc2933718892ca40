//! Links the artifact in the folder QCOMPILER_MODEL and turns the numbers of its header into constants.
use std::{env, fs, path::Path};

fn main() {
    let folder = env::var("QCOMPILER_MODEL").expect("QCOMPILER_MODEL: the folder of the artifact");
    println!("cargo:rerun-if-env-changed=QCOMPILER_MODEL");
    println!("cargo:rerun-if-changed={folder}/model.h");
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static:+verbatim={}", if cfg!(windows) { "model.lib" } else { "model.a" });
    let header = fs::read_to_string(Path::new(&folder).join("model.h")).expect("model.h");
    let constants: String = header.lines().filter_map(constant).collect();
    fs::write(Path::new(&env::var("OUT_DIR").unwrap()).join("model.rs"), constants).unwrap();
}

/// `#define NAME 123` as a constant.
fn constant(line: &str) -> Option<String> {
    let mut words = line.strip_prefix("#define ")?.split_whitespace();
    let (name, value) = (words.next()?, words.next()?.trim_matches(['(', ')']));
    let kind = if value.parse::<isize>().is_ok() { "isize" } else if value.parse::<f64>().is_ok() { "f64" } else { return None };
    Some(format!("#[allow(dead_code)] pub const {name}: {kind} = {value};\n"))
}
