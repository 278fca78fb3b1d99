#include "symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "report.h"

extern "C" {
extern char __executable_start;
extern char _end;
}

namespace fastgan_host {

namespace {

std::string demangled(const char* name) {
    int status = 0;
    char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    const std::string result = status == 0 ? text : name;
    std::free(text);
    return result;
}

void remove_all(std::string& text, const std::string& what) {
    for (std::size_t at; (at = text.find(what)) != std::string::npos;) {
        text.erase(at, what.size());
    }
}

// "void space::(anonymous namespace)::clip_dense<float>(float*, long)" -> "clip_dense<float>".
std::string short_function_name(std::string name) {
    remove_all(name, "(anonymous namespace)::");
    remove_all(name, "fastgan::cuda::");
    remove_all(name, "fastgan::");
    int depth = 0;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < name.size(); ++i) {
        depth += name[i] == '<';
        depth -= name[i] == '>';
        if (depth == 0 && name[i] == ' ') {
            begin = i + 1;
        }
        if (depth == 0 && name[i] == '(') {
            return name.substr(begin, i - begin);
        }
    }
    return name.substr(begin);
}

struct Layout {
    std::uintptr_t load_address = 0;
    SharedSegment shared;
};

Layout program_layout() {
    Layout layout;
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* out) {
            auto& result = *static_cast<Layout*>(out);
            result.load_address = info->dlpi_addr;
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                if (info->dlpi_phdr[i].p_type == PT_TLS) {
                    result.shared = {static_cast<char*>(info->dlpi_tls_data),
                                     info->dlpi_phdr[i].p_memsz};
                }
            }
            return 1;  // the program itself comes first; the libraries don't matter
        },
        &layout);
    return layout;
}

struct Symbols {
    Layout layout = program_layout();
    std::map<std::uintptr_t, std::string> functions;  // mangled, by address
    std::vector<SharedVariable> shared;

    Symbols() {
        std::ifstream file("/proc/self/exe", std::ios::binary);
        const std::string bytes((std::istreambuf_iterator<char>(file)),
                                std::istreambuf_iterator<char>());
        ElfW(Ehdr) header;
        std::memcpy(&header, bytes.data(), sizeof(header));
        std::vector<ElfW(Shdr)> sections(header.e_shnum);
        std::memcpy(sections.data(), bytes.data() + header.e_shoff,
                    sections.size() * sizeof(sections[0]));
        std::vector<SharedVariable> with_gaps;
        for (const auto& section : sections) {
            if (section.sh_type != SHT_SYMTAB) {
                continue;
            }
            const char* const names = bytes.data() + sections[section.sh_link].sh_offset;
            for (std::size_t at = 0; at < section.sh_size; at += sizeof(ElfW(Sym))) {
                ElfW(Sym) symbol;
                std::memcpy(&symbol, bytes.data() + section.sh_offset + at, sizeof(symbol));
                const char* const name = names + symbol.st_name;
                const int type = ELF64_ST_TYPE(symbol.st_info);
                if (type == STT_FUNC) {
                    functions.emplace(layout.load_address + symbol.st_value, name);
                } else if (type == STT_TLS && symbol.st_size > 0) {
                    with_gaps.push_back(
                        {name, layout.shared.begin + symbol.st_value, symbol.st_size});
                }
            }
        }
        keep_shared_variables(with_gaps);
    }

    void keep_shared_variables(std::vector<SharedVariable>& with_gaps) {
        std::sort(with_gaps.begin(), with_gaps.end(),
                  [](const auto& a, const auto& b) { return a.begin < b.begin; });
        bool after_variable = false;
        for (const SharedVariable& symbol : with_gaps) {
            const std::string name = demangled(symbol.name.c_str());
            if (name.find("fastgan_host_gap_") != std::string::npos) {
                after_variable = false;
                continue;
            }
            if (after_variable) {
                fail("internal error", "the compiler put shared variable '" + name +
                                           "' next to another, without a gap");
            }
            after_variable = true;
            shared.push_back({name.substr(name.rfind("::") + (name.rfind("::") + 1 ? 2 : 1)),
                              symbol.begin, symbol.size});
        }
    }
};

const Symbols& symbols() {
    static const Symbols result;
    return result;
}

}  // namespace

std::string kernel_name(const void* kernel) {
    const auto& functions = symbols().functions;
    const auto found = functions.find(reinterpret_cast<std::uintptr_t>(kernel));
    return found == functions.end() ? "(without a name)"
                                    : short_function_name(demangled(found->second.c_str()));
}

const std::vector<SharedVariable>& shared_variables() {
    return symbols().shared;
}

SharedSegment shared_segment() {
    return symbols().layout.shared;
}

Image image() {
    return {&__executable_start, &_end};
}

}  // namespace fastgan_host
