// Package journal is the durable record of what this host is doing: one file per
// operation, written before each step, removed when the plugin has acknowledged
// the end. It holds no secret. After a crash it tells what may have been left
// behind.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	suffix  = ".json"
	version = 1
)

// Entry is what the host knows of one operation.
type Entry struct {
	Version int        `json:"version"`
	Claim   wire.Claim `json:"claim"`
	// Step is the last one that was about to start; Begun when.
	Step  wire.Step `json:"step,omitempty"`
	Begun time.Time `json:"begun,omitzero"`
	// Touched says that the target may hold something of ours.
	Touched bool `json:"touched,omitempty"`
	// Switching says that the copy may have been put in place; Report is then
	// what was verified.
	Switching bool              `json:"switching,omitempty"`
	Report    *operation.Report `json:"report,omitempty"`
	// Finish is the decided end, not yet acknowledged. Target and accounts need
	// nothing any more.
	Finish *wire.FinishRequest `json:"finish,omitempty"`
	// ContainerID is the sandbox, once it was started.
	ContainerID string `json:"container_id,omitempty"`
}

// Journal is the directory. Methods for different operations may be called at
// the same time.
type Journal struct {
	dir string
}

// Open makes the directory where it is missing.
func Open(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &Journal{dir: dir}, nil
}

// Put replaces the entry of its operation and returns when it is on disk.
func (j *Journal) Put(e Entry) error {
	path, err := j.path(e.Claim.OperationID)
	if err != nil {
		return err
	}
	e.Version = version
	content, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	if err := renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(j.dir)); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return j.sync()
}

// Delete forgets an operation; a missing one is fine.
func (j *Journal) Delete(operationID string) error {
	path, err := j.path(operationID)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove journal entry: %w", err)
	}
	return j.sync()
}

// List reads every entry, ordered by operation id, and so by age. An entry that
// cannot be read is in the error, by file, beside the others: what it stood for
// may have left traces.
func (j *Journal) List() ([]Entry, error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("list journal: %w", err)
	}
	var entries []Entry
	var problems []error
	for _, file := range files {
		id, isEntry := strings.CutSuffix(file.Name(), suffix)
		if !isEntry || strings.HasPrefix(file.Name(), ".") {
			continue // what a crash left of a write
		}
		e, err := j.read(id)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		entries = append(entries, e)
	}
	sort.Slice(entries, func(a, b int) bool { return entries[a].Claim.OperationID < entries[b].Claim.OperationID })
	return entries, errors.Join(problems...)
}

func (j *Journal) read(id string) (Entry, error) {
	path := filepath.Join(j.dir, id+suffix)
	content, err := os.ReadFile(path)
	if err != nil {
		return Entry{}, fmt.Errorf("read journal: %w", err)
	}
	var e Entry
	if err := json.Unmarshal(content, &e); err != nil {
		return Entry{}, fmt.Errorf("read journal entry %s: %w", path, err)
	}
	if e.Version > version {
		return Entry{}, fmt.Errorf("journal entry %s is of version %d: this agent is older", path, e.Version)
	}
	if e.Claim.OperationID != id {
		return Entry{}, fmt.Errorf("journal entry %s is of another operation", path)
	}
	return e, nil
}

func (j *Journal) path(id string) (string, error) {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return "", fmt.Errorf("journal: %q is no operation id", id)
	}
	return filepath.Join(j.dir, id+suffix), nil
}

// sync makes a rename or a removal durable: the file's own fsync does not.
func (j *Journal) sync() error {
	dir, err := os.Open(j.dir)
	if err != nil {
		return fmt.Errorf("sync journal: %w", err)
	}
	if err := dir.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync journal: %w", err), dir.Close())
	}
	if err := dir.Close(); err != nil {
		return fmt.Errorf("sync journal: %w", err)
	}
	return nil
}
