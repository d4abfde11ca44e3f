#include "affinity.h"

#if defined(__linux__)

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace xent {
namespace {

cpu_set_t of_this_thread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

const cpu_set_t at_load = of_this_thread();

bool bound() {
  for (const char* name : {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}) {
    if (std::getenv(name)) return true;
  }
  return false;
}

int note(dl_phdr_info* library, size_t, void* names) {
  if (std::strstr(library->dlpi_name, "omp")) {  // libgomp, libiomp5, libomp
    static_cast<std::vector<std::string>*>(names)->emplace_back(library->dlpi_name);
  }
  return 0;
}

template <typename F>
F* function(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}

// Adds the processors that the library, if it is OpenMP's, found for the process before it bound threads.
void add_places(void* library, cpu_set_t* set) {
  auto places = function<int()>(library, "omp_get_num_places");
  auto sizes = function<int(int)>(library, "omp_get_place_num_procs");
  auto ids = function<void(int, int*)>(library, "omp_get_place_proc_ids");
  if (!places || !sizes || !ids) return;
  for (int place = 0; place < places(); ++place) {
    std::vector<int> found(sizes(place));
    ids(place, found.data());
    for (int id : found) {
      if (id >= 0 && id < CPU_SETSIZE) CPU_SET(id, set);
    }
  }
}

// `at_load` may be too few: frameworks often load OpenMP, which binds their thread, before they load this extension.
cpu_set_t allowed() {
  cpu_set_t set = at_load;
  if (!bound()) return set;
  std::vector<std::string> names;  // dlopen is called later: the loader's list is locked here
  dl_iterate_phdr(note, &names);
  for (const std::string& name : names) {
    if (void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
      add_places(library, &set);
      dlclose(library);
    }
  }
  return set;
}

}  // namespace

std::vector<int> processors() {
  cpu_set_t set = allowed();
  std::vector<int> ids;
  for (int id = 0; id < CPU_SETSIZE; ++id) {
    if (CPU_ISSET(id, &set)) ids.push_back(id);
  }
  return ids;
}

int here() { return sched_getcpu(); }

void bind(std::thread& started, int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  pthread_setaffinity_np(started.native_handle(), sizeof set, &set);
}

void unbind(std::thread& started) {
  if (!bound()) return;
  cpu_set_t set = allowed();
  pthread_setaffinity_np(started.native_handle(), sizeof set, &set);
}

}  // namespace xent

#else

namespace xent {
std::vector<int> processors() { return {}; }
int here() { return -1; }
void bind(std::thread&, int) {}
void unbind(std::thread&) {}
}  // namespace xent

#endif
