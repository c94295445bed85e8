package docker

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
)

const (
	workerRepository = "dbops-worker"
	workerPath       = "/dbops-worker"

	// Labels of images; other keys than those of containers, which inherit them.
	labelImageAgent  = "io.dbops.image.agent"
	labelImageOwner  = "io.dbops.image.instance" // who made it and removes it
	labelImageDigest = "io.dbops.image.digest"   // of binary and base

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// workerImage is the image sandboxes run.
type workerImage struct {
	id        string
	baseID    string
	runtime   string
	path      string   // the base's PATH
	variables []string // names of the variables the image sets
	volumes   []string // paths the image declares as volumes
}

// Prepare makes the worker image: our binary on the tools image. It is made once
// for each pair of them; those of earlier pairs are removed unless something
// still uses them. Nothing is pulled or built by the daemon.
func (s *Sandbox) Prepare(ctx context.Context) error {
	s.preparing.Lock()
	defer s.preparing.Unlock()
	made, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.image = made
	s.mu.Unlock()
	s.removeOldImages(ctx, made.id)
	return nil
}

// prepared returns the worker image, making it if need be.
func (s *Sandbox) prepared(ctx context.Context) (*workerImage, error) {
	s.mu.Lock()
	made, closed := s.image, s.closed
	s.mu.Unlock()
	if closed {
		return nil, errNotReady
	}
	if made != nil {
		return made, nil
	}
	if err := s.Prepare(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.image, nil
}

func (s *Sandbox) prepare(ctx context.Context) (*workerImage, error) {
	daemon, err := s.daemon(ctx)
	if err != nil {
		return nil, err
	}
	base, err := s.docker.ImageInspect(ctx, s.config.ToolsImage)
	if errdefs.IsNotFound(err) {
		return nil, failure("the tools image "+s.config.ToolsImage+" is not on this host", "pull or make it; the agent never does", err)
	}
	if err != nil {
		return nil, failure("the tools image cannot be looked at", "", err)
	}
	if base.Os != "linux" || base.Architecture != runtime.GOARCH {
		return nil, failure(fmt.Sprintf("the tools image is for %s/%s, this host is linux/%s", base.Os, base.Architecture, runtime.GOARCH), "", nil)
	}
	binary, err := os.Open(s.config.Binary)
	if err != nil {
		return nil, failure("the worker's binary cannot be read", "", err)
	}
	defer binary.Close()
	if err := checkStatic(binary); err != nil {
		return nil, failure("the worker's binary cannot run in a sandbox", "build it with CGO_ENABLED=0", err)
	}
	digest, err := imageDigest(binary, base.ID)
	if err != nil {
		return nil, failure("the worker's binary cannot be read", "", err)
	}
	path := defaultPath
	if base.Config != nil {
		for _, entry := range base.Config.Env {
			if value, ok := strings.CutPrefix(entry, "PATH="); ok && value != "" {
				path = value
			}
		}
	}

	tag := workerRepository + ":" + digest[:32]
	made, err := s.docker.ImageInspect(ctx, tag)
	if errdefs.IsNotFound(err) || err == nil && (made.Config == nil || made.Config.Labels[labelImageDigest] != digest) {
		began := time.Now()
		if err := s.build(ctx, binary, base.ID, path, tag, digest); err != nil {
			return nil, failure("the worker image cannot be made", "", err)
		}
		s.log.Info("worker image made", "image", tag, "duration_ms", time.Since(began).Milliseconds())
		made, err = s.docker.ImageInspect(ctx, tag)
	} else if left := s.removeBuild(ctx, s.buildName()); left != nil {
		s.log.Warn("what an earlier start made the worker image of is left", "error", left)
	}
	if err != nil {
		return nil, failure("the worker image cannot be looked at", "", err)
	}
	result := &workerImage{id: made.ID, baseID: base.ID, runtime: daemon, path: path}
	if made.Config != nil {
		for volume := range made.Config.Volumes {
			result.volumes = append(result.volumes, volume)
		}
		for _, entry := range made.Config.Env {
			name, _, _ := strings.Cut(entry, "=")
			result.variables = append(result.variables, name)
		}
	}
	return result, nil
}

// checkStatic refuses a binary that needs a loader or libraries: the tools image
// may have others, or none.
func checkStatic(binary io.ReaderAt) error {
	file, err := elf.NewFile(binary)
	if err != nil {
		return fmt.Errorf("read as ELF: %w", err)
	}
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP {
			return errors.New("it is dynamically linked")
		}
	}
	return nil
}

// imageDigest is what identifies a worker image: the binary's content and the
// base it stands on.
func imageDigest(binary io.ReadSeeker, baseID string) (string, error) {
	if _, err := binary.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, binary); err != nil {
		return "", err
	}
	// The digest of fixed length comes first, so no two pairs are written alike.
	content := hash.Sum(nil)
	sum := sha256.Sum256(append(content, baseID...))
	return hex.EncodeToString(sum[:]), nil
}

// build copies the binary into a container of the base that never runs, and
// commits that.
func (s *Sandbox) build(ctx context.Context, binary *os.File, baseID, path, tag, digest string) (err error) {
	name := s.buildName()
	if err := s.removeBuild(ctx, name); err != nil {
		return err
	}
	created, err := s.docker.ContainerCreate(ctx,
		&container.Config{
			Image:      baseID,
			Entrypoint: []string{workerPath}, // an image without a command could not be created from
			Labels:     map[string]string{LabelAgent: s.config.AgentName, LabelInstance: s.instance},
		},
		&container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}},
		nil, nil, name)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		err = errors.Join(err, s.removeContainer(ctx, created.ID))
	}()

	archive, packing := io.Pipe()
	go func() { packing.CloseWithError(pack(packing, binary)) }()
	err = s.docker.CopyToContainer(ctx, created.ID, "/", archive, container.CopyToContainerOptions{})
	archive.CloseWithError(io.ErrClosedPipe) // ends the packing if the daemon did not read it all
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	// What is set here replaces the base's; of variables and volumes those not
	// named here may stay, depending on the daemon's version.
	_, err = s.docker.ContainerCommit(ctx, created.ID, container.CommitOptions{
		Reference: tag,
		Config: &container.Config{
			Env:         []string{"PATH=" + path},
			Entrypoint:  append([]string{workerPath}, s.config.WorkerArgs...),
			User:        workerUser,
			WorkingDir:  "/",
			Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
			Labels: map[string]string{
				labelImageAgent: s.config.AgentName, labelImageOwner: s.instance, labelImageDigest: digest,
			},
		},
	})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// buildName names the container an image is made of. Agents of one name may share a
// host, and none may stand in the way of another, even one that died.
func (s *Sandbox) buildName() string { return "dbops-build-" + s.config.AgentName + "-" + s.instance }

// removeBuild removes what a Prepare that died left behind.
func (s *Sandbox) removeBuild(ctx context.Context, name string) error {
	found, err := s.docker.ContainerInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for an earlier build: %w", err)
	}
	if found.Config == nil || found.Config.Labels[LabelInstance] != s.instance {
		return fmt.Errorf("a container named %s exists and is not this agent's", name)
	}
	return s.removeContainer(ctx, found.ID)
}

// pack writes the binary as a tar archive of one file.
func pack(out io.Writer, binary *os.File) error {
	info, err := binary.Stat()
	if err != nil {
		return err
	}
	if _, err := binary.Seek(0, io.SeekStart); err != nil {
		return err
	}
	archive := tar.NewWriter(out)
	if err := archive.WriteHeader(&tar.Header{Name: strings.TrimPrefix(workerPath, "/"), Mode: 0o555, Size: info.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(archive, binary); err != nil {
		return err
	}
	return archive.Close()
}

// foreignImageAge is how long worker images of other agents on this host stay:
// their makers may be gone for good, or between making one and using it.
const foreignImageAge = 24 * time.Hour

// removeOldImages removes the worker images this agent made for other binaries
// or bases, and such of other agents once they are old. One that is in use stays
// for the next time.
func (s *Sandbox) removeOldImages(ctx context.Context, current string) {
	images, err := s.docker.ImageList(ctx, image.ListOptions{
		Filters: filters.NewArgs(filters.Arg("label", labelImageOwner)),
	})
	if err != nil {
		s.log.Warn("old worker images cannot be listed", "error", err)
		return
	}
	for _, old := range images {
		mine := old.Labels[labelImageOwner] == s.instance
		if old.ID == current || !mine && time.Since(time.Unix(old.Created, 0)) < foreignImageAge {
			continue
		}
		_, err := s.docker.ImageRemove(ctx, old.ID, image.RemoveOptions{PruneChildren: true})
		switch {
		case err == nil:
			s.log.Info("old worker image removed", "image", old.ID)
		case errdefs.IsNotFound(err), errdefs.IsConflict(err):
		default:
			s.log.Warn("old worker image cannot be removed", "image", old.ID, "error", err)
		}
	}
}
