"""What an artifact holds beside the C header for those who build applications: a C++ class and a CMake package.

    <prefix>.hpp                         <prefix>::Program, which owns its arena; spans of fixed extent in and out
    qcompiler_<prefix>Config.cmake       find_package(qcompiler_<prefix>) gives the target qcompiler::<prefix>
    <prefix>.h                           includes model.h: with a name of its own, so that one application can include several

C++20. The class adds no object code of its own beyond the allocation of the arena.
"""

from __future__ import annotations

from collections.abc import Iterator

from qcompiler.runtime.arena import ALIGNMENT
from qcompiler.runtime.artifact import Interface, Tensor

_CPP = """\
// C++ interface of '{prefix}', compiled by {tool}. See model.h for shapes, scales and zero points.
#ifndef {guard}_HPP
#define {guard}_HPP

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <stdexcept>
#include <utility>

#include "model.h"
{classes}
#endif
"""

_CLASS = """
namespace {prefix} {{

// Owns the working memory of one caller: give every thread a Program of its own. It can be moved, not copied.
class Program {{
 public:
  static constexpr std::size_t arena_size = {arena};
{aliases}
  Program() : arena_(::operator new(arena_size, std::align_val_t{{{alignment}}})) {{}}
  ~Program() {{ if (arena_) ::operator delete(arena_, std::align_val_t{{{alignment}}}); }}
  Program(Program &&other) noexcept : arena_(std::exchange(other.arena_, nullptr)) {{}}
  Program &operator=(Program &&other) noexcept {{ std::swap(arena_, other.arena_); return *this; }}
  Program(const Program &) = delete;
  Program &operator=(const Program &) = delete;

  // Integers in, integers out. Throws std::out_of_range where an index is outside of its interval; nothing is written then.
  void run({integer}) {{ call(&{prefix}_run, {{{given}}}, {{{taken}}}); }}

  // Real numbers in, real numbers out; integers inside.
  void run_f32({real}) {{ call(&{prefix}_run_f32, {{{given}}}, {{{taken}}}); }}

 private:
  using Entry = int(const void *const *, void *const *, void *);

  void call(Entry *entry, const void *const (&inputs)[{inputs}], void *const (&outputs)[{outputs}]) {{
    if (entry(inputs, outputs, arena_) != 0) throw std::out_of_range("{prefix}: an input holds an integer outside of its interval");
  }}

  void *arena_;
}};

}}  // namespace {prefix}
"""

_CMAKE = """\
# find_package(qcompiler_{prefix}): the target qcompiler::{prefix}, a static library with its headers.
if(NOT CMAKE_SYSTEM_NAME STREQUAL "{system}")
  set(qcompiler_{prefix}_FOUND FALSE)
  set(qcompiler_{prefix}_NOT_FOUND_MESSAGE "'{prefix}' is compiled for {system} ({triple}), not for ${{CMAKE_SYSTEM_NAME}}")
  return()
endif()
if(NOT TARGET qcompiler::{prefix})
  add_library(qcompiler::{prefix} STATIC IMPORTED)
  set_target_properties(qcompiler::{prefix} PROPERTIES
    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/{library}"
    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")
endif()
"""

_ALIAS = "/* '{prefix}': the interface, under a name of its own. */\n#include \"model.h\"\n"
_SYSTEMS = {"linux": "Linux", "android": "Android", "macos": "Darwin", "windows": "Windows"}
_C_PLUS_PLUS = {"bool": "unsigned char", "float32": "float", "float64": "double"}


def companions(interface: Interface, triple: str, os: str, tool: str, library: str) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of all of them."""
    prefix = interface.prefix
    yield f"{prefix}.hpp", cpp_header(interface, tool).encode("ascii")
    yield f"qcompiler_{prefix}Config.cmake", cmake_package(prefix, triple, os, library).encode("ascii")
    if prefix != "model":
        yield f"{prefix}.h", _ALIAS.format(prefix=prefix).encode("ascii")


def cmake_package(prefix: str, triple: str, os: str, library: str) -> str:
    """The file that find_package reads."""
    return _CMAKE.format(prefix=prefix, triple=triple, system=_SYSTEMS.get(os, os), library=library)


def cpp_header(interface: Interface, tool: str) -> str:
    """A class for each form of the network."""
    classes = "".join(map(_class, interface.forms))
    return _CPP.format(prefix=interface.prefix, guard=f"QCOMPILER_{interface.prefix.upper()}", tool=tool, classes=classes)


def _class(form: Interface) -> str:
    arguments = [*(("Input", "input", t) for t in form.inputs), *(("Output", "output", t) for t in form.outputs)]
    numbers = [*range(len(form.inputs)), *range(len(form.outputs))]
    named = [(f"{kind}{n}", f"{name}{n}", t, kind == "Input") for n, (kind, name, t) in zip(numbers, arguments)]
    aliases = "".join(_aliases(kind, t, constant) for kind, _, t, constant in named)
    return _CLASS.format(
        prefix=form.prefix,
        arena=form.arena_size,
        alignment=ALIGNMENT,
        aliases=aliases,
        integer=", ".join(f"{kind} {name}" for kind, name, _, _ in named),
        real=", ".join(f"{kind}Real {name}" for kind, name, _, _ in named),
        given=", ".join(f"{name}.data()" for _, name, _, constant in named if constant),
        taken=", ".join(f"{name}.data()" for _, name, _, constant in named if not constant),
        inputs=len(form.inputs),
        outputs=len(form.outputs),
    )


def _aliases(kind: str, t: Tensor, constant: bool) -> str:
    qualified = "const " if constant else ""
    spans = ((kind, t.storage), (f"{kind}Real", t.dtype))
    return "".join(f"  using {name} = std::span<{qualified}{_cpp_type(of)}, {t.size}>;\n" for name, of in spans)


def _cpp_type(dtype: str) -> str:
    return _C_PLUS_PLUS.get(dtype, f"std::{dtype}_t")
