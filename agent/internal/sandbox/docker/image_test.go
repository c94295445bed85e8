package docker

import (
	"bytes"
	"context"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/stretchr/testify/require"
)

var removeAll = container.RemoveOptions{Force: true, RemoveVolumes: true}

// volumeConfig and commitWithVolume make a tools image as official ones are: with
// a volume, an entrypoint, a health check and variables.
func volumeConfig(base string) *container.Config {
	return &container.Config{Image: base, Entrypoint: []string{"/bin/true"}}
}

func commitWithVolume(tag string) container.CommitOptions {
	return container.CommitOptions{Reference: tag, Config: &container.Config{
		Volumes:     map[string]struct{}{"/var/lib/data": {}},
		Entrypoint:  []string{"docker-entrypoint.sh"},
		Cmd:         []string{"postgres"},
		Env:         []string{"PATH=/usr/bin:/bin", "LD_PRELOAD=/evil.so", "PGDATA=/var/lib/data"},
		Healthcheck: &container.HealthConfig{Test: []string{"CMD", "true"}},
		User:        "root",
	}}
}

// removeTestImage removes the worker image, which keeps the one it was made of.
func (s *Sandbox) removeTestImage(ctx context.Context) error {
	_, err := s.docker.ImageRemove(ctx, s.image.id, image.RemoveOptions{})
	return err
}

// Another binary or another base is another image.
func TestImageDigest(t *testing.T) {
	t.Parallel()
	digest := func(binary, base string) string {
		d, err := imageDigest(bytes.NewReader([]byte(binary)), base)
		require.NoError(t, err)
		require.Len(t, d, 64)
		return d
	}
	require.Equal(t, digest("a", "b"), digest("a", "b"))
	require.NotEqual(t, digest("a", "b"), digest("a", "c"))
	require.NotEqual(t, digest("a", "b"), digest("c", "b"))
	require.NotEqual(t, digest("ab", "c"), digest("a", "bc"))
}
