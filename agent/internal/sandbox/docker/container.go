package docker

import (
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-units"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
)

const (
	workerUser = "65534:65534" // nobody; owns nothing in any image

	pidsLimit     = 128
	openFiles     = 1024
	oomScoreAdj   = 500 // rather the worker than the host's databases
	runtimeMiB    = 48  // for client tools and what Go does not count
	nanosPerCPU   = 1e9
	mebibyte      = 1 << 20
	hostname      = "worker"
	tempDir       = "/tmp"
	stopTimeoutS  = 4 // a little more than the worker takes by itself
	emptyVolumeKB = 4
)

// dir is the operation's directory on the host.
func (s *Sandbox) dir(operationID string) string { return filepath.Join(s.config.RunDir, operationID) }

// name is the same for each attempt, so that a container can be found whose
// creation was never answered.
func (s *Sandbox) name(operationID string) string {
	return "dbops-" + s.config.AgentName + "-" + operationID
}

// containerConfig is the whole hardening of a sandbox. It decides, it does
// nothing.
func (s *Sandbox) containerConfig(spec sandbox.Spec, made *workerImage, created time.Time) (*container.Config, *container.HostConfig, error) {
	profile, err := seccompProfile()
	if err != nil {
		return nil, nil, err
	}
	names, err := sandbox.ToolHosts(spec.Endpoints)
	if err != nil {
		return nil, nil, err
	}
	hosts := make([]string, 0, len(names))
	for name, address := range names {
		hosts = append(hosts, name+":"+address.String())
	}
	sort.Strings(hosts)

	tmpfs := map[string]string{tempDir: fmt.Sprintf("rw,noexec,nosuid,nodev,size=%dm,mode=1777", s.config.TempMiB)}
	for _, volume := range made.volumes {
		// Left alone, a volume is a writable directory on the host's disk.
		if volume != tempDir {
			tmpfs[volume] = fmt.Sprintf("ro,noexec,nosuid,nodev,size=%dk,mode=0555", emptyVolumeKB)
		}
	}
	memory := s.config.MemoryMiB * mebibyte
	pids := int64(pidsLimit)
	stopTimeout := stopTimeoutS
	// Collect garbage before the limit ends the worker. /tmp and tools count too.
	memLimit := max(s.config.MemoryMiB-s.config.TempMiB-runtimeMiB, runtimeMiB)

	config := &container.Config{
		Image:       made.id,
		Hostname:    hostname,
		User:        workerUser,
		Env:         environment(made, memLimit),
		Entrypoint:  append([]string{workerPath}, s.config.WorkerArgs...),
		WorkingDir:  "/",
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
		StopSignal:  "SIGTERM",
		StopTimeout: &stopTimeout,
		// The dead man's switch: the daemon closes the worker's stdin when the
		// agent's end of it goes, however that happens.
		OpenStdin:    true,
		StdinOnce:    true,
		AttachStdin:  true,
		AttachStdout: true,
		AttachStderr: true,
		Labels: map[string]string{
			LabelAgent:     s.config.AgentName,
			LabelInstance:  s.instance,
			LabelOperation: spec.OperationID,
			LabelCreated:   created.UTC().Format(time.RFC3339Nano),
		},
	}
	host := &container.HostConfig{
		NetworkMode: "none",
		// No resolver exists; these keep the host's own out of resolv.conf and
		// make every look-up fail at once.
		DNS:        []string{"127.0.0.1"},
		DNSOptions: []string{"timeout:1", "attempts:1"},
		DNSSearch:  []string{"."},
		ExtraHosts: hosts,
		Mounts: []mount.Mount{{
			// Not Binds, which would make a missing directory.
			Type: mount.TypeBind, Source: s.dir(spec.OperationID), Target: sandbox.SocketDir, ReadOnly: true,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		}},
		LogConfig:      container.LogConfig{Type: "none"},
		CapDrop:        []string{"ALL"},
		SecurityOpt:    []string{"no-new-privileges:true", "seccomp=" + profile},
		ReadonlyRootfs: true,
		Tmpfs:          tmpfs,
		IpcMode:        "none",
		OomScoreAdj:    oomScoreAdj,
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		Resources: container.Resources{
			Memory:     memory,
			MemorySwap: memory, // no swap: rows stay off the disk
			NanoCPUs:   int64(s.config.CPUs * nanosPerCPU),
			PidsLimit:  &pids,
			Ulimits: []*units.Ulimit{
				{Name: "core", Soft: 0, Hard: 0},
				{Name: "nofile", Soft: openFiles, Hard: openFiles},
			},
		},
	}
	return config, host, nil
}

// environment is all the worker gets. Docker adds the variables of the image,
// which has those of its base, unless they stand here; without a value they are
// removed.
func environment(made *workerImage, memLimitMiB int64) []string {
	ours := []string{
		"PATH=" + made.path, "HOME=" + tempDir, "TMPDIR=" + tempDir, "LANG=C.UTF-8", "LC_ALL=C.UTF-8",
		fmt.Sprintf("GOMEMLIMIT=%dMiB", memLimitMiB),
	}
	all := slices.Clone(ours)
	for _, name := range made.variables {
		if !slices.ContainsFunc(ours, func(entry string) bool { return strings.HasPrefix(entry, name+"=") }) {
			all = append(all, name)
		}
	}
	return all
}
