package docker

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write seccomp.json")

// Socket families a worker may use. AF_INET exists for its own loopback only,
// netlink for glibc's resolver. AF_VSOCK leads to the hypervisor and has no
// namespace.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_NETLINK}

// withheld are calls Docker allows and a worker has no use for, by reason.
var withheld = map[string][]string{
	"reads or steers other processes":              {"ptrace", "process_vm_readv", "process_vm_writev", "process_mrelease", "pidfd_getfd", "kcmp"},
	"keys of the kernel":                           {"add_key", "keyctl", "request_key"},
	"runs outside the filter":                      {"io_uring_setup", "io_uring_enter", "io_uring_register"},
	"a bundle of calls whose arguments are hidden": {"socketcall", "ipc"},
	"programs in memory, past noexec":              {"memfd_create", "memfd_secret"},
	"legacy asynchronous I/O": {
		"io_setup", "io_submit", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64",
	},
	"shared memory and queues; the sandbox has no IPC": {
		"mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64",
		"mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64",
		"shmat", "shmctl", "shmdt", "shmget",
	},
	"devices and handles":              {"mknod", "mknodat", "name_to_handle_at", "open_by_handle_at", "fanotify_mark"},
	"writes out the whole host's disk": {"sync", "syncfs"},
	"looks at mounts":                  {"listmount", "statmount"},
	"rarely used, often broken":        {"modify_ldt", "remap_file_pages", "vmsplice", "userfaultfd", "uretprobe"},
}

// narrowed is the profile a worker gets: for this machine's native calls only,
// since 32-bit calls have their own numbers and bundles.
func narrowed(t *testing.T) *seccomp.Seccomp {
	t.Helper()
	profile := seccomp.DefaultProfile()
	profile.ArchMap = []seccomp.Architecture{{Arch: specs.ArchX86_64}, {Arch: specs.ArchAARCH64}}
	var drop []string
	for _, names := range withheld {
		drop = append(drop, names...)
	}
	var rules []*seccomp.Syscall
	for _, rule := range profile.Syscalls {
		if rule.Includes != nil && len(rule.Includes.Caps) > 0 {
			continue // a worker has no capabilities
		}
		if rule.Includes != nil && len(rule.Includes.Arches) > 0 &&
			!slices.Contains(rule.Includes.Arches, "amd64") && !slices.Contains(rule.Includes.Arches, "arm64") {
			continue
		}
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool {
			return name == "socket" || slices.Contains(drop, name)
		})
		if len(rule.Names) > 0 {
			rules = append(rules, rule)
		}
	}
	for _, family := range families {
		rules = append(rules, &seccomp.Syscall{LinuxSyscall: specs.LinuxSyscall{
			Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}},
		}})
	}
	profile.Syscalls = rules
	return profile
}

// The embedded profile is Docker's default, narrowed as this file says, so that
// a new version of the default cannot widen it unseen.
func TestSeccompProfile_IsNarrowedDefault(t *testing.T) {
	t.Parallel()
	want, err := json.MarshalIndent(narrowed(t), "", "\t")
	require.NoError(t, err)
	want = append(want, '\n')
	if *update {
		require.NoError(t, os.WriteFile("seccomp.json", want, 0o644))
	}
	got, err := os.ReadFile("seccomp.json")
	require.NoError(t, err)
	require.Equal(t, string(want), string(got), "run go test -update after reading the difference")
}

// Whatever the derivation does, these hold.
func TestSeccompProfile_Holds(t *testing.T) {
	t.Parallel()
	var profile seccomp.Seccomp
	require.NoError(t, json.Unmarshal(profileSource, &profile))
	require.Equal(t, specs.ActErrno, profile.DefaultAction)
	for _, arch := range profile.ArchMap {
		require.Empty(t, arch.SubArches)
	}
	var got []uint64
	for _, rule := range profile.Syscalls {
		for _, name := range rule.Names {
			if rule.Action != specs.ActAllow {
				continue
			}
			if name == "socket" {
				require.Len(t, rule.Args, 1)
				require.Equal(t, specs.OpEqualTo, rule.Args[0].Op)
				got = append(got, rule.Args[0].Value)
			}
			for reason, names := range withheld {
				require.NotContains(t, names, name, reason)
			}
			for _, prefix := range []string{"io_uring", "mount", "umount", "bpf", "perf_", "unshare", "setns", "init_module", "kexec", "keyctl"} {
				require.False(t, strings.HasPrefix(name, prefix), name)
			}
		}
	}
	require.ElementsMatch(t, families, got)
}
